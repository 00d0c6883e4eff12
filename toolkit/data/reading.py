"""What is special about a picture's file: the kinds of pictures that are not read as plain 8-bit grey or RGB."""

import contextlib
import re

import numpy as np
from PIL import ExifTags, Image

from toolkit.data.formats import FORMATS
from toolkit.data.preprocess import BAND_PIXELS, UNREADABLE, decode_first_frame, upright_size

KINDS = {
    "16 bits": "picture{s} of more than 8 bits per channel, of which the upper 8 are used",
    "alpha": "picture{s} with transparent pixels, laid over white",
    "palette with transparency": "palette picture{s} with transparent pixels, laid over white",
    "cmyk": "CMYK picture{s}, converted to RGB without a colour profile",
    "colour space": "picture{s} of another colour space, converted to RGB",
    "animated": "picture{s} with several frames or pages, of which the first is used",
    "rotated": "picture{s} turned upright, as the EXIF data say",
    "long": "picture{s} more than twice as long as wide: the network sees the middle",
    "wrong ending": "picture{s} with the ending of another format, read as what the content is",
}
"""Kind → what is said of such pictures."""

_COMMON_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK")
_DEEP_RAW_MODE = re.compile(r";(16|32)[BLNS]")
"""Pillow's names of pixels as files hold them; 16-bit RGB has the mode RGB, and only this tells."""
_FAMILIES = {"MPO": "JPEG", "DIB": "BMP"}
"""Pillow's names of variants → the format that they are written as."""


def find_kinds(image: Image.Image, name: str) -> set[str]:
    """Decode a picture that was just opened from the file `name`; the keys of KINDS that it is.

    Raises one of preprocess.UNREADABLE for a damaged one.
    """
    # As Pillow loads a picture, it forgets how the file holds pixels, and turns a TIFF by itself. A PNG is loaded for
    # its EXIF data.
    deep = _is_deep(image)
    rotated = image.format != "PNG" and _is_rotated(image)
    decode_first_frame(image)
    width, height = upright_size(image)
    kinds = {
        "16 bits": deep,
        "cmyk": image.mode == "CMYK",
        "colour space": image.mode not in _COMMON_MODES and not image.mode.startswith("I"),
        "rotated": rotated or _is_rotated(image),
        "long": max(width, height) > 2 * min(width, height),
        "wrong ending": _has_wrong_ending(image, name),
    }
    if image.has_transparency_data:
        kinds["palette with transparency" if image.mode == "P" else "alpha"] = _has_transparent_pixels(image)
    with contextlib.suppress(*UNREADABLE):  # later frames may be damaged, and are not used
        kinds["animated"] = getattr(image, "is_animated", False)
    return {kind for kind, applies in kinds.items() if applies}


def _is_deep(image: Image.Image) -> bool:
    if image.mode.startswith("I"):
        return True
    # an image from a file has tiles until it is loaded, one that was made in memory has none
    arguments = [str(value) for tile in getattr(image, "tile", ())[:1] for value in _as_tuple(tile.args)]
    return any(_DEEP_RAW_MODE.search(value) for value in arguments) or (
        image.format == "PPM" and any(value.isdecimal() and int(value) > 255 for value in arguments)
    )


def _is_rotated(image: Image.Image) -> bool:
    with contextlib.suppress(*UNREADABLE):
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    return False


def _as_tuple(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _has_wrong_ending(image: Image.Image, name: str) -> bool:
    """False if the picture is of no file."""
    family = _FAMILIES.get(image.format or "", image.format)
    endings = next((endings for format_, endings in FORMATS.items() if format_.upper() == family), None)
    return endings is not None and not name.lower().endswith(endings)


def _has_transparent_pixels(image: Image.Image) -> bool:
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        if image.mode.startswith("I"):  # Pillow has no such pixels with alpha
            if (np.asarray(band) == image.info["transparency"]).any():
                return True
            continue
        picture = band if "A" in band.getbands() else band.convert("RGBA")
        lowest = picture.getchannel("A").getextrema()[0]
        if isinstance(lowest, int) and lowest < 255:
            return True
    return False
