"""From an image file to the pixels that a network sees: the one definition of decoding, resizing and cropping.

Training, evaluation, export, prediction and the demo all use it. Pixels are uint8 RGB, (H, W, 3);
normalisation (mean and std) happens inside the networks and the exported graphs. Importing this module does not import
torch.
"""

import contextlib
import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image, UnidentifiedImageError

from toolkit.data.formats import FORMAT_NAMES
from toolkit.data.picture_file import RefusedError, TooLargeError, bits_of, decoding_bytes, is_negative, lacks_memory
from toolkit.errors import WeightsError, one_line
from toolkit.settings import DataRecipe

UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError),
    *(struct.error, zlib.error, Image.DecompressionBombError, MemoryError),
)
"""Exceptions of Pillow for damaged files, and for pictures that find too little memory."""

NO_MEMORY = "there is not enough memory to decode it"
"""The reason for a picture that may be read another time."""

BAND_BYTES = 24
"""Memory that a conversion takes for each pixel of a band."""
BAND_PIXELS = 2**21
"""Pixels that are converted to RGB at once. A picture that is larger never has two whole copies in memory."""
MOST_ROWS = 2**21
"""A column of a taller picture is no small band: all of its rows go first."""
DIGEST_BYTES = 16
PREVIEW_SIDE = 1024
"""px"""
WHOLE_PIXELS = 2**25
"""A resized picture of up to so many pixels is made whole; of a larger one only the part that is kept."""

_FILTER = Image.Resampling.BILINEAR


class _Turn(NamedTuple):
    """A turn or reflection: Pillow's name of it, whether it swaps the axes, and which of them it reverses before."""

    transpose: Image.Transpose
    swaps_axes: bool
    reverses_x: bool
    reverses_y: bool


_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: _Turn(Image.Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: _Turn(Image.Transpose.ROTATE_180, False, True, True),
    4: _Turn(Image.Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: _Turn(Image.Transpose.TRANSPOSE, True, False, False),
    6: _Turn(Image.Transpose.ROTATE_270, True, False, True),
    7: _Turn(Image.Transpose.TRANSVERSE, True, True, True),
    8: _Turn(Image.Transpose.ROTATE_90, True, True, False),
}

MAX_SIDE = 4096
"""px; the largest side that a recipe or a model's metadata may ask for"""
MOST_PAGES = 1000

Box = tuple[int, int, int, int]
"""left, top, right, bottom in px"""


def why_unreadable(error: BaseException) -> str:
    """The reason in one short phrase."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a {FORMAT_NAMES} image, or damaged at its start"
    if isinstance(error, TooLargeError):
        return f"too large: {error}; {error.remedy}"
    if isinstance(error, RefusedError):
        return f"{error}; {error.remedy}"
    if isinstance(error, MemoryError) or str(error).startswith("out of memory"):
        return NO_MEMORY
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
    decode_first_frame(image)
    turn = _find_turn(image)
    return _to_rgb(image if turn is None else image.transpose(turn.transpose), _Depth.of(image))


def upright_bands(image: Image.Image, box: Box | None = None) -> Iterator[Image.Image]:
    """The same pixels in bands of rows, from top to bottom: of all, or of the part in `box`, in upright coordinates.

    A band has at most BAND_PIXELS, but one row at least. Conversions need a few times the memory of a band, not of the
    picture.
    """
    decode_first_frame(image)
    for band in _split(box or (0, 0, *upright_size(image))):
        yield _upright_part(image, band)


def hash_pixels(image: Image.Image) -> bytes:
    """A hash (DIGEST_BYTES) of the size and the pixels that decode_rgb gives: the same for every format and mode."""
    decode_first_frame(image)
    width, height = upright_size(image)
    total = hashlib.blake2b(f"{width}×{height}".encode(), digest_size=DIGEST_BYTES)
    for left in range(0, width, BAND_PIXELS):  # a row may be longer than a band
        for band in upright_bands(image, (left, 0, min(left + BAND_PIXELS, width), height)):
            total.update(band.tobytes())
    return total.digest()


def preview(image: Image.Image) -> Image.Image:
    """The same picture, upright 8-bit RGB; of more than BAND_PIXELS it is a smaller one, PREVIEW_SIDE px long."""
    decode_first_frame(image)
    width, height = upright_size(image)
    if width * height <= BAND_PIXELS:
        return decode_rgb(image)
    share = PREVIEW_SIDE / max(width, height)
    size = max(1, round(width * share)), max(1, round(height * share))
    return _resize(image, size, (0, 0, *size))


def middle_box(width: int, height: int, least_long_side: int) -> Box:
    """The part of a resized picture that is kept: the longer side is bounded by twice the shorter one.

    `least_long_side` is another bound in px, if that is more. It removes a multiple of 4 px, half at each end, so that
    a centred crop begins at the same pixel after rounding.
    """
    limit = max(2 * min(width, height), least_long_side)
    margin = max(max(width, height) - limit, 0) // 4 * 2
    return (margin, 0, width - margin, height) if width > height else (0, margin, width, height - margin)


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
        return self.centre_crop(self.keep_middle(image))

    @property
    def least_long_side(self) -> int:
        """px that `keep_middle` leaves of a picture's longer side at least, so that the network's square is filled."""
        return self.image_size if self.resize * 2 < self.image_size else 0

    def keep_middle(self, image: Image.Image) -> np.ndarray:
        """Image of any mode → uint8 (H, W, 3), upright, its shorter side `resize` px, the longer one in proportion.

        The longer one is rounded down, and only its middle part is kept (`middle_box`): all that a centre crop or a
        training view can see. So memory follows the picture's shorter side and not its proportions. The pixels are
        those of the picture that is resized whole. If that would exceed WHOLE_PIXELS, or if the picture has more rows
        than MOST_ROWS, values may differ by 1.
        """
        decode_first_frame(image)
        width, height = upright_size(image)
        short = min(width, height)
        if self.resize in (0, short):
            return _copy(image, middle_box(width, height, self.least_long_side))
        size = (width * self.resize // short, height * self.resize // short)
        box = middle_box(*size, self.least_long_side)
        if size[0] * size[1] > WHOLE_PIXELS:
            return np.asarray(_resize(image, size, box))
        return np.asarray(_resize(image, size, (0, 0, *size)).crop(box))

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
    turn = _find_turn(image)
    return image.size[::-1] if turn is not None and turn.swaps_axes else image.size


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


def working_bytes(image: Image.Image) -> int:
    """Memory that an opened picture takes until its pixels are converted band by band, an estimate."""
    return decoding_bytes(image) + BAND_BYTES * min(BAND_PIXELS, image.width * image.height)


def decode_first_frame(image: Image.Image) -> None:
    """Decode the first frame. If that fails, all work ends with it: Pillow would hand out half a picture later.

    Raises MemoryError if too little memory may be the reason, whatever the decoder says.
    """
    try:
        if image.tell() != 0:
            image.seek(0)
        image.load()
    except UNREADABLE as error:
        if not isinstance(error, MemoryError) and lacks_memory(decoding_bytes(image)):
            raise MemoryError from error
        raise


class _Depth(NamedTuple):
    """How grey values of more than 8 bits are meant: how many bits they have, and whether white is 0."""

    bits: int
    is_negative: bool

    @classmethod
    def of(cls, image: Image.Image) -> Self:
        return cls(bits_of(image), is_negative(image))


def _to_rgb(image: Image.Image, depth: _Depth) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, 0xFFFF)
        grey = (values >> (depth.bits - 8)).clip(0, 0xFF).astype(np.uint8)
        if depth.is_negative:
            grey = 255 - grey
        clear = image.info.get("transparency")
        if isinstance(clear, int):  # Pillow would lose it
            grey[values == clear] = 255
        image = Image.fromarray(grey)
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return image if image.mode == "RGB" else image.convert("RGB")


def _find_turn(image: Image.Image) -> _Turn | None:
    if image.format == "TIFF":
        return None  # Pillow turns these itself, and gives the size after that
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except UNREADABLE:  # damaged EXIF does not damage the picture; every viewer shows such files unrotated
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _split(box: Box, *, by_columns: bool = False) -> Iterator[Box]:
    """Bands of rows, or of columns, of at most BAND_PIXELS each, but of one row or column at least."""
    left, top, right, bottom = box
    if by_columns:
        step = max(1, BAND_PIXELS // (bottom - top))
        yield from ((start, top, min(start + step, right), bottom) for start in range(left, right, step))
    else:
        step = max(1, BAND_PIXELS // (right - left))
        yield from ((left, start, right, min(start + step, bottom)) for start in range(top, bottom, step))


def _upright_part(image: Image.Image, box: Box) -> Image.Image:
    """RGB, of a decoded picture of any mode, at `box` of the upright one."""
    turn = _find_turn(image)
    stored = _before_turn(turn, image.size, box)
    part = image if stored == (0, 0, *image.size) else image.crop(stored)
    return _to_rgb(part if turn is None else part.transpose(turn.transpose), _Depth.of(image))


def _before_turn(turn: _Turn | None, size: tuple[int, int], box: Box) -> Box:
    """The part of a picture of `size` px, as it is stored, that is at `box` after `turn`."""
    if turn is None:
        return box
    left, top, right, bottom = box
    if turn.swaps_axes:
        left, top, right, bottom = top, left, bottom, right
    if turn.reverses_x:
        left, right = size[0] - right, size[0] - left
    if turn.reverses_y:
        top, bottom = size[1] - bottom, size[1] - top
    return left, top, right, bottom


def _copy(image: Image.Image, box: Box) -> np.ndarray:
    """The pixels at `box`, uint8 (H, W, 3)."""
    left, top, right, bottom = box
    pixels = np.empty((bottom - top, right - left, 3), dtype=np.uint8)
    row = 0
    for band in upright_bands(image, box):
        pixels[row : row + band.height] = np.asarray(band)
        row += band.height
    return pixels


def _resize(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """The part at `box` of the upright RGB picture at `size` px, by Pillow's bilinear filter, which is antialiased.

    Pillow goes along the rows first, then along the columns, with 8 bits between the two; the other way round if that
    makes a very tall picture smaller. So do we, band by band.
    """
    left, top, right, bottom = box
    width, height = upright_size(image)
    columns, across = _source(left, right, size[0], width)
    rows, down = _source(top, bottom, size[1], height)
    wide, high = right - left, bottom - top
    columns_first = 100 * width < height <= MOST_ROWS and size[1] < height
    half = Image.new("RGB", (columns[1] - columns[0], high) if columns_first else (wide, rows[1] - rows[0]))
    for band in _split((columns[0], rows[0], columns[1], rows[1]), by_columns=columns_first):
        part = _upright_part(image, band)
        if columns_first:
            part = part.resize((part.width, high), _FILTER, (0, down[0], part.width, down[1]))
            half.paste(part, (band[0] - columns[0], 0))
        else:
            part = part.resize((wide, part.height), _FILTER, (across[0], 0, across[1], part.height))
            half.paste(part, (0, band[1] - rows[0]))
    rest = (across[0], 0, across[1], high) if columns_first else (0, down[0], wide, down[1])
    return half.resize((wide, high), _FILTER, rest)


def _source(first: int, last: int, length: int, whole: int) -> tuple[tuple[int, int], tuple[float, float]]:
    """For pixels `first` to `last` of a side that is resized from `whole` to `length` px: which px make them up.

    (from, to) of the px that the filter sees, and from where to where, counted from there, its middle goes.
    """
    if (first, last) == (0, length):
        return (0, whole), (0.0, float(whole))
    scale = whole / length
    margin = max(scale, 1.0) + 1  # the bilinear filter reaches as far as one pixel of the smaller side
    start, end = max(math.floor(first * scale - margin), 0), min(math.ceil(last * scale + margin), whole)
    return (start, end), (first * scale - start, last * scale - start)
