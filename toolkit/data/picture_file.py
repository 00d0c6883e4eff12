"""Picture files: opened and measured before anything is decoded. What is too large to decode ends here, in one line.

A file is read piece by piece, never as a whole. Of a JPEG only the first picture counts: what a phone or a program put
behind it (a movie, an archive, further JPEGs) is not looked at.
"""

import contextlib
import io
import re
import struct
from pathlib import Path

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from toolkit.data.formats import FORMAT_NAMES, READERS
from toolkit.data.parallel import DECODING
from toolkit.machine.limits import can_reserve

MAX_PIXELS = 120_000_000
"""Larger pictures are refused unread (12,000×9,000 passes): a small file can unpack to fill the memory."""
MAX_DECODING_BYTES = 965_000_000
"""Memory that decoding one picture may take. In most formats 120 million pixels take half of it."""
MAX_HEADER_BYTES = 128 * 2**20
"""Bytes that are read before the pixels: text, profiles, thumbnails. Pillow keeps all of them in memory."""
WEBP_HEAD_BYTES = 30
"""Bytes of a WebP that hold the size of its canvas."""
READ_BYTES = 64
"""What a read counts besides: Pillow keeps small pieces as objects."""
MAX_JPEG_PASSES = 100
"""Progressive JPEGs have ten or so. A pass of a few bytes takes as long as one over all pixels."""

PIECE_BYTES = 2**20
"""Bytes of a JPEG that are searched for markers in one go."""

_MARKER = re.compile(rb"\xff(?:\xd9|([\xc0-\xcf\xda-\xfe])(..))", re.DOTALL)
"""The end of a JPEG's picture, or another marker with the length of its segment.

Coded pixels contain only FF 00 and FF D0 to FF D7, which do not match.
"""
_PASS = b"\xda"

_MOVIE_BOX = b"ftyp"
"""The fifth to eighth byte of HEIC and AVIF pictures, which are stored as movies are."""

_WIDTH, _HEIGHT, _SAMPLE_BITS, _COMPRESSION, _MEANING, _ORIENTATION = 256, 257, 258, 259, 262, 274
_SAMPLES, _STRIP_HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 277, 278, 322, 323
"""Numbers of tags of a TIFF. Width and height are those of the stored picture, which may be turned later."""
_WHITE_IS_ZERO, _YCBCR = 0, 6
"""Values of _MEANING."""
_TILE_STEP = 16
"""px; sides of tiles are multiples of this, so the last ones reach over the picture's edge."""
_LARGEST_TILE_PIXELS = 2048**2

_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
"""Pillow's memory for a pixel, by mode; in all others it is 4."""
_BYTES_PER_ROW = 24
"""Pillow keeps a pointer of 8 bytes for each row, of a picture and of its parts that are converted and resized."""


SPARE_BYTES = 32 * 2**20
"""Memory that decoding may take besides its estimate."""


class RefusedError(ValueError):
    """A sound picture that is not read; `remedy` says what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


class TooLargeError(RefusedError):
    """It would take too much memory."""


class UnreadKindError(RefusedError):
    """Its pixels are of a kind that is not read."""


class _File(io.FileIO):
    """A file that closes with the last reference to it, without a warning: a picture may never be decoded."""

    def __del__(self) -> None:
        self.close()


class _Tiff(TiffImagePlugin.TiffImageFile):
    """Pillow's reader without a bound of its own: that is a warning on stderr for sound pictures below MAX_PIXELS."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size, None).im
        super().load_prepare()


class PictureStream(io.BufferedReader):
    """A file of a picture, which closes with the last reference to it.

    `passes` over the pixels are those of a JPEG, else 1. `end` is where the picture ends, in bytes from the start.
    """

    passes = 1
    end: int
    header_left: int | None = None
    """Bytes that may still be read; None: any number."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file's; raises TooLargeError beyond `header_left`."""
        if self.header_left is None:
            return super().read(size)
        most = max(self.header_left, 0) + 1
        content = super().read(most if size is None or size < 0 else min(size, most))
        self.header_left -= len(content) + READ_BYTES
        if self.header_left < 0:
            raise TooLargeError(f"more than {MAX_HEADER_BYTES >> 20} MB come before its pixels", _NO_HEADER)
        return content

    def content(self) -> bytes:
        """The file's bytes up to the end of the picture."""
        self.seek(0)
        return self.read(self.end)

    def __del__(self) -> None:
        self.close()


_FEWER_PIXELS = f"give a picture of at most {MAX_PIXELS / 1e6:.0f} million pixels"
_SMALLER = "make it smaller"
_OTHER_FORM = {
    "JPEG": ", or save it without progressive passes",
    "WEBP": ", or save it as a PNG or as a JPEG without progressive passes",
    "TIFF": ", or save it upright, with 8 bits per channel and in strips of a few rows",
}
"""Format → another form of it that takes less memory."""
_NO_HEADER = "save it again without the text, profiles and thumbnails in it"
_AS_8_OR_16_BITS = "save it as RGB or grey of 8 or 16 bits"


def open_image(path: Path) -> ImageFile.ImageFile:
    """Open an image file of a known format. Raises one of preprocess.UNREADABLE; decoding may too.

    TooLargeError, one of these, is for more than MAX_PIXELS, MAX_DECODING_BYTES or MAX_HEADER_BYTES.
    """
    file = _File(path)
    if file.seekable():
        return _open(PictureStream(file))
    with PictureStream(file) as pipe:
        pipe.header_left = MAX_HEADER_BYTES
        return open_bytes(pipe.read())


def opening_bytes(path: Path) -> int:
    """Memory that a picture takes once it is open: that of a WebP's decoder. 0 for other files."""
    with contextlib.suppress(OSError, ValueError):
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(WEBP_HEAD_BYTES)
                if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
                    return _webp_bytes(start, file.seek(0, io.SEEK_END))
    return 0


def open_bytes(content: bytes) -> ImageFile.ImageFile:
    """The same for the content of a file."""
    return _open(PictureStream(io.BytesIO(content)))


def decoding_bytes(image: Image.Image) -> int:
    """Memory that an opened picture takes at the peak of its decoding, an estimate; a decoded one what it has taken."""
    width, height = image.size
    pixel = _BYTES_PER_PIXEL.get(image.mode, 4)
    stored = width * height * pixel + _BYTES_PER_ROW * height
    if not isinstance(image, ImageFile.ImageFile):
        return stored
    return stored + 4 * width * pixel + _codec_bytes(image, stored)  # two rows, perhaps in 16 bits


def bits_of(image: Image.Image) -> int:
    """Bits of an opened picture's grey values if they are more than 8."""
    tags = getattr(image, "tag_v2", None)
    return 12 if tags is not None and tags.get(_SAMPLE_BITS) == (12,) else 16


def is_negative(image: Image.Image) -> bool:
    """Whether Pillow gives an opened picture's white as 0: a TIFF of 16 bits may say that white is zero."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and image.mode.startswith("I") and tags.get(_MEANING) == _WHITE_IS_ZERO


def _open(stream: PictureStream) -> ImageFile.ImageFile:
    stream.end = stream.seek(0, io.SEEK_END)
    if not stream.end:
        raise ValueError("the file is empty")
    stream.seek(0)
    start = stream.read(16)
    if start.startswith(b"\xff\xd8"):
        _measure_jpeg(stream)
        if stream.passes > MAX_JPEG_PASSES:
            raise ValueError(f"the JPEG has more than {MAX_JPEG_PASSES} passes")
    stream.header_left = MAX_HEADER_BYTES
    image = _identify(stream, start)
    stream.header_left = None
    _require_known_range(image)
    if image.format == "TIFF":
        _require_small_tiles(image)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise TooLargeError(f"{width}×{height} px", _FEWER_PIXELS)
    if (needed_bytes := decoding_bytes(image)) > MAX_DECODING_BYTES:
        remedy = _SMALLER + _OTHER_FORM.get(image.format or "", "")
        raise TooLargeError(f"{width}×{height} px of this kind take {needed_bytes / 1e9:.1f} GB to decode", remedy)
    return image


def _require_known_range(image: Image.Image) -> None:
    """Refuse floats, and whole numbers of 32 bits or with a sign: nobody knows which of them is white."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise UnreadKindError(
            "its pixels are not numbers of 8 or 16 bits, so what is white is unknown", _AS_8_OR_16_BITS
        )


def _require_small_tiles(image: Image.Image) -> None:
    """Refuse a TIFF whose tiles are far larger than its picture: they are unpacked whole, however small the file.

    And one whose pixels Pillow would take for others: brightness and colour difference, not compressed.
    """
    tags = image.getexif()
    if tags.get(_MEANING) == _YCBCR and image.tile and image.tile[0][0] == "raw":  # type: ignore[attr-defined]
        raise UnreadKindError("it is a TIFF in YCbCr without compression, which is not read", _AS_8_OR_16_BITS)
    width, length = (tags.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_HEIGHT))
    whole = (image.width + _TILE_STEP) * (image.height + _TILE_STEP)
    if not (isinstance(width, int) and isinstance(length, int)) or width * length > max(whole, _LARGEST_TILE_PIXELS):
        raise ValueError("the tiles of the TIFF are larger than its picture")


def _identify(stream: PictureStream, start: bytes) -> ImageFile.ImageFile:
    """As Image.open, with Pillow's own readers, but without its bound: that is a warning, and an error from 179 Mpx on.

    A warning can only be turned off for all threads of a process.
    """
    for name in READERS:
        if name not in Image.OPEN:
            Image.init()
        read, accepts = Image.OPEN[name]
        if accepts is None or accepts(start) is True:
            stream.seek(0)
            try:
                return _Tiff(stream) if name == "TIFF" else read(stream, "")
            except (SyntaxError, IndexError, TypeError, struct.error, KeyError) as error:
                if name == "TIFF":
                    _refuse_unread_tiff(stream, str(error))
                if isinstance(error, KeyError):
                    raise
                continue  # it looked like this format, and is not
            except OSError:
                stream.seek(0)
                if name == "WEBP" and lacks_memory(_webp_bytes(stream.read(WEBP_HEAD_BYTES), stream.end)):
                    raise MemoryError from None
                raise
    if start[4:8] == _MOVIE_BOX:
        raise ValueError(f"it is HEIC, AVIF or a movie, whatever its name says, not {FORMAT_NAMES}")
    raise UnidentifiedImageError("no reader knows it")


def _refuse_unread_tiff(stream: PictureStream, why: str) -> None:
    """Raise UnreadKindError if the file is a TIFF of a kind that Pillow does not know; it says no more than `why`."""
    stream.seek(0)
    head = stream.read(16)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if 43 in head[2:4] else 8])
        stream.seek(tags.next)
        tags.load(stream)
        bands, bits = int(tags.get(_SAMPLES, 1)), ", ".join(map(str, dict.fromkeys(tags.get(_SAMPLE_BITS, (1,)))))
        packed = int(tags.get(_COMPRESSION, 1))
    except (SyntaxError, LookupError, TypeError, ValueError, OSError, struct.error):
        return
    if packed not in TiffImagePlugin.COMPRESSION_INFO:
        kind = f"a TIFF of compression {packed}"
    elif why == "unknown pixel mode":
        kind = f"a TIFF of {bands} {'band' if bands == 1 else 'bands'} of {bits} bits"
    else:
        return
    raise UnreadKindError(f"it is {kind}, which is not read", _AS_8_OR_16_BITS)


def lacks_memory(needed_bytes: int) -> bool:
    """Whether an attempt that took so many bytes may have failed because there were not so many.

    Decoders say that a file is damaged whatever they lack. Others that decoded at the same time may have ended since.
    """
    return not can_reserve(needed_bytes + SPARE_BYTES + DECODING.busy_bytes)


def _webp_bytes(start: bytes, end: int) -> int:
    """Memory that opening and decoding a WebP of `end` bytes takes, by its canvas; little if its header is damaged."""
    kind, body = start[12:16], start[20:]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(body[i : i + 3], "little") for i in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
    return 16 * width * height + 2 * end


def _measure_jpeg(stream: PictureStream) -> None:
    """Set `passes` and `end` from the markers of the first picture; a file without an end marker ends where it ends.

    This goes from marker to marker as libjpeg does: segments are skipped by their length, and anything between
    segments that is no marker is passed over. It stops at too many passes.
    """
    stream.passes = 0
    start = place = stream.seek(2)
    piece = stream.read(PIECE_BYTES)
    while stream.passes <= MAX_JPEG_PASSES:
        found = _MARKER.search(piece, place - start)
        if found is None:
            if len(piece) < PIECE_BYTES:
                return
            start = place = stream.seek(max(place, start + PIECE_BYTES - 3))  # a marker may lie across the border
            piece = stream.read(PIECE_BYTES)
        elif found[1] is None:
            stream.end = start + found.end()
            return
        else:
            stream.passes += found[1] == _PASS
            place = start + found.start() + 2 + max(2, int.from_bytes(found[2]))


def _codec_bytes(image: ImageFile.ImageFile, stored: int) -> int:
    """Memory that a decoder takes beside the `stored` bytes of the pixels; measured, or read in the decoder's code."""
    width, height = image.size
    stream = image.fp
    if image.format == "WEBP":  # two canvases and a copy, each RGBA, and the file
        return 12 * width * height + (stream.end if isinstance(stream, PictureStream) else 0)
    if image.format == "TIFF":
        return _tiff_bytes(image, stored)
    codec = image.tile[0][0] if image.tile else ""
    if codec == "jpeg" and isinstance(stream, PictureStream) and stream.passes > 1:
        return _coefficient_bytes(image)
    if codec == "bmp_rle":  # a list of pixels, which one code can lengthen by 255 rows, and its copies
        return 3 * (width * height + 256 * width)
    return 3 * stored if codec in ("ppm", "ppm_plain") else 0  # the same kind of list


def _tiff_bytes(image: ImageFile.ImageFile, stored: int) -> int:
    """A strip or tile, coded or as RGBA, which may be the whole picture; and a copy of all if the picture is turned."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    part = 0
    if image.tile and image.tile[0][0] == "libtiff":
        rows = min(tags.get(_STRIP_HEIGHT, tags[_HEIGHT]), tags[_HEIGHT])
        pixels = tags[_TILE_WIDTH] * tags[_TILE_HEIGHT] if _TILE_WIDTH in tags else rows * tags[_WIDTH]
        part = int(pixels) * max(4, sum(tags.get(_SAMPLE_BITS, (8,))) // 8)
    return part + (stored if tags.get(_ORIENTATION, 1) != 1 else 0)


def _coefficient_bytes(image: ImageFile.ImageFile) -> int:
    """A JPEG in several passes is kept as coefficients of 2 bytes, in blocks of 8×8, until its last pass."""
    layers: list[tuple[int, int, int, int]] = image.layer  # type: ignore[attr-defined]
    factors = [(across, down) for _, across, down, _ in layers]
    columns = -(-image.width // (8 * max(across for across, _ in factors)))
    rows = -(-image.height // (8 * max(down for _, down in factors)))
    return columns * rows * sum(across * down for across, down in factors) * 64 * 2
