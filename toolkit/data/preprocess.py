"""From an image file to the pixels that a network sees: the one definition of decoding, resizing and cropping.

Training, evaluation, export, prediction and the demo all use it. Pixels are uint8 RGB, (H, W, 3);
normalisation (mean and std) happens inside the networks and the exported graphs. Importing this module does not import
torch.
"""

import contextlib
import io
import json
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image, UnidentifiedImageError

from toolkit.data.formats import FORMAT_NAMES, READERS
from toolkit.errors import WeightsError, one_line
from toolkit.settings import DataRecipe

UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""Exceptions of Pillow for damaged files."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = {_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}


MAX_SIDE = 4096
"""px; the largest side that a recipe or a model's metadata may ask for"""

_JPEG_SCAN = b"\xff\xda"
"""Marks the start of a scan of a JPEG; the bytes of pixels never contain it."""
_MAX_JPEG_SCANS = 100
"""Progressive JPEGs have ten or so. A scan of a few bytes takes as long as a pass over all pixels."""

_MOVIE_BOX = b"ftyp"
"""The fifth to eighth byte of HEIC and AVIF pictures, which are stored as movies are."""
MOST_PAGES = 1000
_TILE_TAGS = (0x0142, 0x0143)
"""Width and length in px of a TIFF's tiles."""
_TILE_STEP = 16
"""px; sides of tiles are multiples of this, so the last ones reach over the picture's edge."""
_LARGEST_TILE_PIXELS = 2048**2


def open_image(path: Path) -> Image.Image:
    """Open an image file of a known format and close it at once. Raises one of UNREADABLE; decoding may too."""
    content = path.read_bytes()
    if not content:
        raise ValueError("the file is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=READERS)
    except UnidentifiedImageError:
        if content[4:8] == _MOVIE_BOX:
            raise ValueError(f"it is HEIC, AVIF or a movie, whatever its name says, not {FORMAT_NAMES}") from None
        raise
    if image.format == "JPEG" and content.count(_JPEG_SCAN) > _MAX_JPEG_SCANS:
        raise ValueError(f"the JPEG has more than {_MAX_JPEG_SCANS} passes")
    _require_known_range(image)
    if image.format == "TIFF":
        _require_small_tiles(image)
    return image


def why_unreadable(error: BaseException) -> str:
    """The reason in one short phrase."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a {FORMAT_NAMES} image, or damaged at its start"
    if "MAX_TEXT_CHUNK" in str(error):
        return "the text or colour profile packed into it is too large"
    if str(error).startswith("decoder error"):  # libtiff says no more
        return "its pixels are damaged"
    return (isinstance(error, OSError) and error.strerror) or one_line(error)


def decode_rgb(image: Image.Image) -> Image.Image:
    """Any picture as upright 8-bit RGB.

    EXIF rotation is applied; grey becomes three equal channels, 16 bits become their upper 8, alpha is laid over white,
    a palette or CMYK is converted, and the first frame of an animation is used.
    """
    if image.tell() != 0:
        image.seek(0)
    image.load()
    turn = _find_turn(image)
    image = image if turn is None else image.transpose(turn)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values.clip(0, 0xFFFF) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return image if image.mode == "RGB" else image.convert("RGB")


def crop_start(length: np.ndarray | int, side: int) -> np.ndarray:
    """The start of a centred crop of `side` px along an axis of `length` px; negative if it is in the padding.

    Half pixels as in torchvision's CenterCrop: rounded half to even inside the image, down in the padding.
    """
    room = np.asarray(length, dtype=np.int64) - side
    inside = np.rint(room / 2).astype(np.int64)
    return np.where(room >= 0, inside, -(-room // 2))


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes a network's input: S = `image_size` px, `resize` px (0 keeps the size), RGB mean and std.

    `mean` and `std` apply to RGB in 0..1; they are only stored here, and the network applies them.
    """

    image_size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_recipe(cls, data: DataRecipe) -> Self:
        return cls(image_size=data.image_size, resize=data.resize, mean=data.mean, std=data.std)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Image of any mode → uint8 (S, S, 3)."""
        return self.centre_crop(self.resize_shorter(decode_rgb(image)))

    def resize_shorter(self, image: Image.Image) -> np.ndarray:
        """RGB image → uint8 (H, W, 3), its shorter side `resize` px, the longer one in proportion, rounded down."""
        width, height = image.size
        short = min(width, height)
        if self.resize not in (0, short):
            size = (width * self.resize // short, height * self.resize // short)
            image = image.resize(size, Image.Resampling.BILINEAR)  # Pillow's bilinear filter is antialiased
        return np.asarray(image)

    def centre_crop(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) → (S, S, 3): the centre, with black if the image is smaller than the crop."""
        side = self.image_size
        top, left = (int(crop_start(length, side)) for length in pixels.shape[:2])
        part = pixels[max(top, 0) : top + side, max(left, 0) : left + side]
        if part.shape[:2] == (side, side):
            return np.ascontiguousarray(part)
        crop = np.zeros((side, side, 3), dtype=np.uint8)
        crop[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]] = part
        return crop

    def to_json(self) -> str:
        """The metadata of an ONNX file: every step, so that others can repeat it without this project."""
        resize: dict[str, Any] = {"shorter_side_px": self.resize}
        if self.resize:
            resize |= {
                "longer_side": "in proportion, rounded down",
                "filter": "bilinear, antialiased (Pillow BILINEAR)",
            }
        steps = {
            "decode": "EXIF rotation applied, alpha over white, 8-bit RGB",
            "resize": resize,
            "centre_crop": {
                "side_px": self.image_size,
                "offset": "(side of the image - side of the crop) / 2, rounded half to even",
                "smaller_images": "padded with black, the odd pixel right and below",
            },
            "layout": "uint8 NHWC",
            "normalise": {"in_graph": True, "scale": "1/255", "mean": list(self.mean), "std": list(self.std)},
        }
        return json.dumps(steps)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the text of `to_json`. Raises WeightsError if it is something else."""
        try:
            steps = json.loads(text)
            size, resize = steps["centre_crop"]["side_px"], steps["resize"]["shorter_side_px"]
            mean, std = ([float(value) for value in steps["normalise"][key]] for key in ("mean", "std"))
            if not (type(size) is int and 0 < size <= MAX_SIDE and type(resize) is int and 0 <= resize <= MAX_SIDE):
                raise ValueError(f"a side must be of 1 to {MAX_SIDE} px")
            if not len(mean) == len(std) == 3:
                raise ValueError("mean and std must have three values each")
            if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
                raise ValueError("mean and std must be finite, and std above 0")
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise WeightsError(
                f"the model's `preprocess` metadata cannot be read ({type(error).__name__}: {one_line(error)})",
                "export the model again with this toolkit",
            ) from None
        return cls(size, resize, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in px after EXIF rotation."""
    on_its_side = _find_turn(image) in _ON_ITS_SIDE
    return image.size[::-1] if on_its_side else image.size


def count_frames(image: Image.Image) -> int:
    """Frames or pages of an opened picture; of a TIFF up to MOST_PAGES, since Pillow looks each up in a list."""
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    pages = 1
    with contextlib.suppress(EOFError):
        while pages < MOST_PAGES:
            image.seek(pages)
            pages += 1
    image.seek(0)
    return pages


def _require_known_range(image: Image.Image) -> None:
    """Refuse floats, and whole numbers of 32 bits or with a sign: nobody knows which of them is white."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("its pixels are not numbers of 8 or 16 bits, so what is white is unknown; save it as 8 bits")


def _require_small_tiles(image: Image.Image) -> None:
    """Refuse a TIFF whose tiles are far larger than its picture: they are unpacked whole, however small the file."""
    tags = image.getexif()
    width, length = (tags.get(tag, 0) for tag in _TILE_TAGS)
    whole = (image.width + _TILE_STEP) * (image.height + _TILE_STEP)
    if not (isinstance(width, int) and isinstance(length, int)) or width * length > max(whole, _LARGEST_TILE_PIXELS):
        raise ValueError("the tiles of the TIFF are larger than its picture")


def _find_turn(image: Image.Image) -> Image.Transpose | None:
    if image.format == "TIFF":
        return None  # Pillow turns these itself, and gives the size after that
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except UNREADABLE:  # damaged EXIF does not damage the picture; every viewer shows such files unrotated
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
