"""TIFF and PPM files: as many kinds as Pillow writes, those without a known range, and those made to do harm."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image
from PIL import Image

from toolkit.data import picture_file
from toolkit.data.picture_file import TooLargeError, decoding_bytes, open_image
from toolkit.data.preprocess import MOST_PAGES, UNREADABLE, Preprocess, count_frames, decode_rgb, upright_size
from toolkit.data.preprocess import why_unreadable as why
from toolkit.data.reading import find_kinds
from toolkit.predict import PictureError, read_pixels


def decode(path: Path) -> np.ndarray:
    return np.asarray(decode_rgb(open_image(path)))


def expect_unreadable(path: Path, reason: str) -> None:
    with pytest.raises(UNREADABLE) as caught:
        decode(path)
    assert reason in why(caught.value)


def make_tiff(pages: int = 1, body: bytes = b"", **tags: int) -> bytes:
    """Pages of 4-byte tags, which are called `_256` and so on; the value −1 stands for the place of `body`."""
    size = 2 + 12 * len(tags) + 4
    content = b"II*\0" + struct.pack("<I", 8)
    for page in range(pages):
        after = 8 + size * (page + 1) if page < pages - 1 else 0
        content += struct.pack("<H", len(tags))
        for tag, value in sorted((int(name[1:]), value) for name, value in tags.items()):
            content += struct.pack("<HHII", tag, 4, 1, 8 + size * pages if value < 0 else value)
        content += struct.pack("<I", after)
    return content + body


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_every_kind_gives_the_pixels_that_a_png_gives(tmp_path: Path, compression: str, mode: str) -> None:
    image = make_image(0, seed=1).convert(mode)
    image.save(tmp_path / "a.tif", compression=compression)
    if mode == "CMYK":
        expected = np.asarray(image.convert("RGB"))
    else:
        image.save(tmp_path / "a.png")
        expected = decode(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize(("mode", "ending"), [("1", "pbm"), ("L", "pgm"), ("RGB", "ppm"), ("RGB", "pnm")])
def test_portable_maps(tmp_path: Path, mode: str, ending: str) -> None:
    image = make_image(0, seed=2).convert(mode)
    image.save(tmp_path / f"a.{ending}", "PPM")
    assert np.array_equal(decode(tmp_path / f"a.{ending}"), np.asarray(image.convert("RGB")))


def test_portable_maps_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P2\n# made by hand\n3 1\n255\n0 128 255\n")
    assert decode(tmp_path / "a.pgm")[..., 0].tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("ending", ["tif", "pgm"])
def test_16_bits_keep_the_upper_byte(tmp_path: Path, ending: str) -> None:
    deep = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{ending}")
    assert decode(tmp_path / f"a.{ending}")[..., 1].tolist() == [[0x00, 0x00, 0x01, 0x12], [0x7F, 0x80, 0xFF, 0xFF]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_is_turned_once(tmp_path: Path, orientation: int, compression: str) -> None:
    """Pillow turns it as it decodes it, other formats are turned here."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = make_image(0, seed=1, size=(20, 12))
    image.save(tmp_path / "a.tif", exif=exif, compression=compression)
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "a.tif"), decode(tmp_path / "a.png"))
    opened = open_image(tmp_path / "a.tif")
    size = upright_size(open_image(tmp_path / "a.png"))
    assert upright_size(opened) == size
    decode_rgb(opened)
    assert upright_size(opened) == size


def test_the_first_page_counts(tmp_path: Path) -> None:
    pages = [make_image(i, seed=i, size=(10 + i, 8)) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    opened = open_image(tmp_path / "a.tif")
    assert count_frames(opened) == 3
    assert np.array_equal(np.asarray(decode_rgb(opened)), np.asarray(pages[0]))


@pytest.mark.parametrize(
    ("values", "ending"),
    [
        (np.linspace(0, 1, 12, dtype=np.float32), "tif"),
        (np.linspace(0, 1, 12, dtype=np.float32), "pfm"),
        (np.arange(12, dtype=np.int32) << 16, "tif"),
    ],
)
def test_numbers_without_a_known_range_are_refused(tmp_path: Path, values: np.ndarray, ending: str) -> None:
    Image.fromarray(values.reshape(3, 4)).save(tmp_path / f"a.{ending}")
    expect_unreadable(tmp_path / f"a.{ending}", "its pixels are not numbers of 8 or 16 bits")


def test_numbers_with_a_sign_are_refused(tmp_path: Path) -> None:
    tags = {"_256": 2, "_257": 1, "_258": 16, "_262": 1, "_273": -1, "_277": 1, "_278": 1, "_279": 4, "_339": 2}
    (tmp_path / "a.tif").write_bytes(make_tiff(1, struct.pack("<2h", -5, 300), **tags))
    expect_unreadable(tmp_path / "a.tif", "its pixels are not numbers of 8 or 16 bits")


def tiled(side: int, tile: int) -> bytes:
    body = zlib.compress(bytes(tile * tile))
    tags = {"_256": side, "_257": side, "_258": 8, "_259": 8, "_262": 1, "_277": 1, "_322": tile, "_323": tile}
    return make_tiff(1, body, **tags, _324=-1, _325=len(body))


def test_a_tile_may_reach_over_the_edge(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiled(100, 256))
    assert decode(tmp_path / "a.tif").shape == (100, 100, 3)


def test_a_tile_far_larger_than_its_picture_is_refused(tmp_path: Path) -> None:
    """It would be unpacked whole: a file of 16 kB into 16 MB, one of a few MB into many GB."""
    (tmp_path / "a.tif").write_bytes(tiled(10, 4096))
    expect_unreadable(tmp_path / "a.tif", "the tiles of the TIFF are larger than its picture")


def test_more_pages_than_anybody_counts(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(make_tiff(MOST_PAGES + 50, bytes(1), _256=1, _257=1, _273=-1))
    opened = open_image(tmp_path / "a.tif")
    assert count_frames(opened) == MOST_PAGES
    assert opened.tell() == 0


def test_damaged_pixels_say_so(tmp_path: Path) -> None:
    make_image(0, seed=1).save(tmp_path / "a.tif", compression="tiff_adobe_deflate")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[8:2000] = bytes(1992)
    (tmp_path / "a.tif").write_bytes(content)
    expect_unreadable(tmp_path / "a.tif", "its pixels are damaged")


def test_the_content_decides_whatever_the_ending_says(tmp_path: Path) -> None:
    image = make_image(0, seed=4)
    for content, ending in (("PNG", "jpg"), ("TIFF", "png"), ("GIF", "jpeg"), ("PPM", "tif"), ("BMP", "webp")):
        image.save(tmp_path / f"a.{ending}", content)
        assert open_image(tmp_path / f"a.{ending}").format == content
        assert decode(tmp_path / f"a.{ending}").shape == (40, 48, 3)


@pytest.mark.parametrize("brand", [b"heic", b"avif", b"isom"])
def test_a_phones_picture_with_another_ending_is_named(tmp_path: Path, brand: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(40))
    expect_unreadable(tmp_path / "a.jpg", "it is HEIC, AVIF or a movie, whatever its name says, not JPEG, PNG, WebP")


# --- what is stored, and what is meant --------------------------------------------------------------------------------


def save_strips(path: Path, size: tuple[int, int], rows: int, mode: str = "L", **options: object) -> None:
    Image.new(mode, size).save(path, compression="tiff_lzw", tiffinfo={278: rows}, **options)


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_one_strip_takes_the_same_whether_the_picture_stands_or_lies(tmp_path: Path, mode: str) -> None:
    needed = {}
    for name, size in {"lying": (3000, 40), "standing": (40, 3000)}.items():
        save_strips(tmp_path / f"{name}.tif", size, size[1], mode)
        needed[name] = decoding_bytes(open_image(tmp_path / f"{name}.tif"))
    assert needed["standing"] == pytest.approx(needed["lying"], rel=0.3), "a pointer for each row is all that differs"


def test_a_tall_scan_in_one_strip_is_read(tmp_path: Path) -> None:
    """A page of 40 million pixels, and the largest picture that stands; 40,000 px were taken for its width."""
    for size in ((1000, 40_000), (60, 60_000), (9000, 12_000)):
        save_strips(tmp_path / "a.tif", size, size[1])
        assert decoding_bytes(open_image(tmp_path / "a.tif")) < 965e6
    assert decode(tmp_path / "a.tif").shape == (12_000, 9000, 3)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_turned_picture_pays_for_its_copy_only(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    save_strips(tmp_path / "a.tif", (40, 3000), 3000, exif=exif)
    stored = 40 * 3000
    expected = 5 * stored + 24 * 3000 + (stored if orientation > 1 else 0)
    assert decoding_bytes(open_image(tmp_path / "a.tif")) == pytest.approx(expected, rel=0.3)


def test_the_way_out_fits_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_file, "MAX_DECODING_BYTES", 100_000)
    save_strips(tmp_path / "a.tif", (300, 300), 300)
    with pytest.raises(TooLargeError) as caught:
        open_image(tmp_path / "a.tif")
    assert caught.value.remedy == (
        "make it smaller, or save it upright, with 8 bits per channel and in strips of a few rows"
    )


@pytest.mark.filterwarnings("error")
def test_pillow_has_no_bound_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its warning for sound pictures of 89 to 120 million pixels is none of ours."""
    for compression in ("raw", "tiff_lzw", "group4"):
        Image.new("1", (300, 200)).save(tmp_path / f"{compression}.tif", compression=compression)
    Image.new("P", (300, 200), 3).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("P", (300, 200))])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    for path in tmp_path.iterdir():
        assert decode(path).shape == (200, 300, 3)


def make_grey(bits: int, values: np.ndarray, meaning: int) -> bytes:
    height, width = values.shape
    tags = {
        "_256": width,
        "_257": height,
        "_258": bits,
        "_259": 1,
        "_262": meaning,
        "_273": -1,
        "_277": 1,
        "_278": height,
    }
    return make_tiff(body=values.tobytes(), _279=values.nbytes, **tags)


GREY = np.arange(48, dtype=np.uint16).reshape(6, 8) * 5


@pytest.mark.parametrize(("bits", "scale"), [(8, 1), (16, 257)])
def test_white_may_be_zero(tmp_path: Path, bits: int, scale: int) -> None:
    values = (GREY * scale).astype(np.uint8 if bits == 8 else "<u2")
    highest = 2**bits - 1
    (tmp_path / "black.tif").write_bytes(make_grey(bits, values, meaning=1))
    (tmp_path / "white.tif").write_bytes(make_grey(bits, highest - values, meaning=0))
    assert np.array_equal(decode(tmp_path / "white.tif"), decode(tmp_path / "black.tif"))
    assert np.array_equal(decode(tmp_path / "black.tif")[..., 0], GREY)
    image = open_image(tmp_path / "white.tif")
    assert np.array_equal(Preprocess(6, 0, (0,) * 3, (1,) * 3)(image)[..., 0], GREY[:, 1:7])


def test_12_bits_are_not_nearly_black(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 48).astype(np.uint16).reshape(6, 8)
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    tags = {"_256": 8, "_257": 6, "_258": 12, "_259": 1, "_262": 1, "_273": -1, "_277": 1, "_278": 6, "_279": 72}
    (tmp_path / "a.tif").write_bytes(make_tiff(body=packed.astype(np.uint8).tobytes(), **tags))
    assert np.array_equal(decode(tmp_path / "a.tif")[..., 0], values >> 4)


def test_the_transparent_value_of_16_bits_is_laid_over_white(tmp_path: Path) -> None:
    values = (GREY * 257).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=int(values[2, 3]))
    grey = decode(tmp_path / "a.png")[..., 0]
    assert grey[2, 3] == 255
    assert (np.delete(grey.ravel(), 2 * 8 + 3) == np.delete(GREY.ravel(), 2 * 8 + 3)).all()
    assert find_kinds(open_image(tmp_path / "a.png"), "a.png") == {"16 bits", "alpha"}


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"_258": 8, "_262": 1, "_277": 5}, "it is a TIFF of 5 bands of 8 bits, which is not read"),
        ({"_258": 10, "_262": 1, "_277": 1}, "it is a TIFF of 1 band of 10 bits, which is not read"),
        ({"_258": 8, "_259": 34712, "_262": 1, "_277": 1}, "it is a TIFF of compression 34712, which is not read"),
    ],
)
def test_a_tiff_of_a_kind_that_is_not_read_is_named(tmp_path: Path, tags: dict[str, int], reason: str) -> None:
    known = {"_256": 8, "_257": 6, "_259": 1, "_273": -1, "_278": 6, "_279": 240, **tags}
    (tmp_path / "a.tif").write_bytes(make_tiff(body=bytes(240), **known))
    expect_unreadable(tmp_path / "a.tif", f"{reason}; save it as RGB or grey of 8 or 16 bits")
    with pytest.raises(PictureError, match=r"cannot read .*a.tif as an image: it is a TIFF of") as caught:
        read_pixels(tmp_path / "a.tif", Preprocess(6, 0, (0,) * 3, (1,) * 3))
    assert str(caught.value).endswith("which is not read; save it as RGB or grey of 8 or 16 bits"), "one way out"


def test_a_tiff_in_ycbcr_is_not_called_truncated(tmp_path: Path) -> None:
    Image.new("YCbCr", (40, 30)).save(tmp_path / "a.tif")
    expect_unreadable(
        tmp_path / "a.tif", "it is a TIFF in YCbCr without compression, which is not read; save it as RGB"
    )
    Image.new("RGB", (40, 30)).save(tmp_path / "b.tif", compression="jpeg")
    assert decode(tmp_path / "b.tif").shape == (30, 40, 3)


def test_a_damaged_tiff_is_no_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0" + bytes(20))
    expect_unreadable(tmp_path / "a.tif", "or damaged at its start")
