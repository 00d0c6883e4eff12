"""Decoding against independent expectations, resize and crop against torchvision."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image, make_png
from PIL import Image, ImageOps
from torchvision.transforms import v2

from toolkit.data import preprocess
from toolkit.data.picture_file import open_image
from toolkit.data.preprocess import (
    MAX_SIDE,
    NO_MEMORY,
    Preprocess,
    decode_rgb,
    hash_pixels,
    middle_box,
    preview,
    upright_bands,
    upright_size,
    why_unreadable,
)
from toolkit.errors import WeightsError
from toolkit.settings import DataRecipe

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def make_preprocess(image_size: int, resize: int = 0) -> Preprocess:
    return Preprocess(image_size, resize, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def through_file(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    image.save(path, **options)
    return np.asarray(decode_rgb(open_image(path)))


@pytest.mark.parametrize(("suffix", "tolerance"), [("png", 0), ("bmp", 0), ("jpg", 6), ("jpeg", 6), ("webp", 8)])
def test_every_format_gives_the_pixels_that_were_saved(tmp_path: Path, suffix: str, tolerance: int) -> None:
    colours = np.zeros((32, 64, 3), dtype=np.uint8)
    colours[:, :32], colours[:, 32:] = (200, 40, 90), (20, 160, 220)
    options = {"quality": 100, "subsampling": 0} if suffix.startswith("j") else {"quality": 100}
    decoded = through_file(Image.fromarray(colours), tmp_path / f"x.{suffix}", **({} if tolerance == 0 else options))
    assert decoded.shape == (32, 64, 3)
    away_from_the_edge = np.r_[0:24, 40:64]
    difference = np.abs(decoded.astype(int) - colours)[:, away_from_the_edge]
    assert difference.max() <= tolerance


def test_lossless_webp_is_exact(tmp_path: Path) -> None:
    image = make_image(1, seed=5)
    assert np.array_equal(through_file(image, tmp_path / "x.webp", lossless=True), np.asarray(image))


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    decoded = through_file(Image.fromarray(grey), tmp_path / "x.png")
    assert np.array_equal(decoded, np.stack([grey] * 3, axis=-1))


def test_black_and_white_bits_become_0_and_255(tmp_path: Path) -> None:
    bits = np.array([[True, False], [False, True]])
    decoded = through_file(Image.fromarray(bits), tmp_path / "x.png")
    assert decoded[..., 0].tolist() == [[255, 0], [0, 255]]


def test_16_bit_grey_keeps_the_upper_byte(tmp_path: Path) -> None:
    deep = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], dtype=np.uint16)
    decoded = through_file(Image.fromarray(deep), tmp_path / "x.png")
    assert decoded[..., 1].tolist() == [[0x00, 0x00, 0x01, 0x12], [0x7F, 0x80, 0xFF, 0xFF]]


def test_16_bit_rgb_keeps_the_upper_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(make_png(2, 1, bytes([0]) + bytes.fromhex("12345678abcd00ff80007fff"), depth=16))
    assert np.asarray(decode_rgb(open_image(path))).tolist() == [[[0x12, 0x56, 0xAB], [0x00, 0x80, 0x7F]]]


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_alpha_lies_over_white(tmp_path: Path, suffix: str) -> None:
    picture = np.zeros((1, 3, 4), dtype=np.uint8)
    picture[0] = [(*RED, 255), (*RED, 0), (0, 100, 200, 128)]
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    decoded = through_file(Image.fromarray(picture), tmp_path / f"x.{suffix}", **options)[0]
    assert decoded[:2].tolist() == [list(RED), list(WHITE)]
    weight = 128 / 255
    expected = [round(weight * channel + (1 - weight) * 255) for channel in (0, 100, 200)]
    assert np.abs(decoded[2].astype(int) - expected).max() <= 1


def test_alpha_of_a_bmp_lies_over_white(tmp_path: Path) -> None:
    """Only a header with an alpha mask gives a BMP alpha; in the old 32-bit kind the fourth byte means nothing."""
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 56, 2, 1, 1, 32, 3, 8, 2835, 2835, 0, 0) + masks
    pixels = bytes([0, 0, 255, 255]) + bytes([0, 0, 255, 0])  # red as BGRA, opaque and clear
    path = tmp_path / "x.bmp"
    path.write_bytes(b"BM" + struct.pack("<IHHI", 14 + 56 + 8, 0, 0, 14 + 56) + header + pixels)
    assert np.asarray(decode_rgb(open_image(path))).tolist() == [[list(RED), list(WHITE)]]


def test_grey_with_alpha_lies_over_white(tmp_path: Path) -> None:
    picture = np.array([[[10, 255], [10, 0]]], dtype=np.uint8)
    assert through_file(Image.fromarray(picture, "LA"), tmp_path / "x.png").tolist() == [[[10] * 3, [255] * 3]]


def test_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), "P")
    image.putpalette([*RED, *GREEN, *BLUE])
    assert through_file(image, tmp_path / "x.png").tolist() == [[list(RED), list(GREEN)], [list(BLUE), list(GREEN)]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_transparent_palette_entry_shows_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    image.putpalette([*RED, *GREEN, *BLUE])
    decoded = through_file(image, tmp_path / "x.png", transparency=transparency)
    assert decoded.tolist() == [[list(RED), list(WHITE), list(BLUE)]]


def test_transparent_colour_of_an_rgb_png_shows_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[RED, GREEN]], dtype=np.uint8))
    assert through_file(image, tmp_path / "x.png", transparency=GREEN).tolist() == [[list(RED), list(WHITE)]]


def test_cmyk_is_ink(tmp_path: Path) -> None:
    inks = {WHITE: (0, 0, 0, 0), BLACK: (0, 0, 0, 255), (0, 255, 255): (255, 0, 0, 0), RED: (0, 255, 255, 0)}
    for colour, ink in inks.items():
        decoded = through_file(Image.new("CMYK", (16, 16), ink), tmp_path / "x.jpg", quality=100)
        assert np.abs(decoded.astype(int) - colour).max() <= 4, colour


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    image = open_image(tmp_path / "x.webp")
    image.seek(1)
    assert np.asarray(decode_rgb(image))[0, 0].tolist() == list(RED)


def test_a_phones_multi_picture_jpeg_gives_its_first_picture(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (16, 16), colour) for colour in (BLUE, RED)]
    pictures[0].save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=pictures[1:], quality=100)
    decoded = np.asarray(decode_rgb(open_image(tmp_path / "x.jpg")))
    assert np.abs(decoded.astype(int) - BLUE).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_rotation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    """Against Pillow's own exif_transpose; orientation 6 (a phone held upright) by hand below."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    make_image(0, seed=1, size=(20, 12)).save(path, exif=exif)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert np.array_equal(np.asarray(decode_rgb(open_image(path))), expected)


def test_exif_6_turns_clockwise(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), RED)
    image.putpixel((1, 0), BLUE)
    assert through_file(image, tmp_path / "x.png", exif=exif).tolist() == [[list(RED)], [list(BLUE)]]


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\1"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF|Truncated File Read")
def test_damaged_exif_does_not_lose_the_picture(tmp_path: Path, exif: bytes) -> None:
    make_image(0, seed=1).save(tmp_path / "x.jpg", exif=exif)
    assert decode_rgb(open_image(tmp_path / "x.jpg")).size == (48, 40)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, not an image", "not a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM image, or damaged at its start"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM image, or damaged at",
        ),
    ],
)
def test_a_file_that_is_no_image_says_so(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises((OSError, ValueError)) as caught:
        open_image(tmp_path / "x.jpg")
    assert why_unreadable(caught.value).startswith(reason)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    make_image(0, seed=1, size=(200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(OSError, match="truncated"):
        decode_rgb(open_image(path))


@pytest.mark.parametrize("size", [(61, 40), (40, 61), (48, 48), (200, 33), (17, 90)])
@pytest.mark.parametrize(("resize", "image_size"), [(0, 32), (0, 64), (24, 24), (31, 20), (64, 61), (20, 50)])
def test_resize_and_crop_equal_torchvision(size: tuple[int, int], resize: int, image_size: int) -> None:
    image = make_image(1, seed=3, size=size)
    steps = [v2.CenterCrop(image_size)]
    if resize:
        steps.insert(0, v2.Resize(resize, interpolation=v2.InterpolationMode.BILINEAR))
    expected = np.asarray(v2.Compose(steps)(image))
    assert np.array_equal(make_preprocess(image_size, resize)(image), expected)


def test_a_smaller_image_is_framed_in_black() -> None:
    crop = make_preprocess(5)(Image.new("RGB", (2, 3), RED))
    expected = np.zeros((5, 5, 3), dtype=np.uint8)
    expected[1:4, 1:3] = RED
    assert np.array_equal(crop, expected)


# --- the same pixels in less memory ----------------------------------------------------------------------------------

SIZES = [(61, 40), (40, 61), (48, 48), (200, 33), (17, 90), (1, 50), (403, 100), (7, 900), (1000, 3), (2, 2000), (1, 1)]
SIZES += [(30, 3001), (30, 3000), (3001, 30), (200, 20_500)]
"""Very tall ones among them: Image.resize turns its order round for these, if it makes them smaller."""


def resize_whole(image: Image.Image, resize: int, image_size: int) -> np.ndarray:
    """The definition: all of it is converted, turned and resized, and then the middle is kept."""
    upright = decode_rgb(image)
    short = min(upright.size)
    if resize not in (0, short):
        upright = upright.resize([side * resize // short for side in upright.size], Image.Resampling.BILINEAR)
    least = image_size if resize * 2 < image_size else 0
    left, top, right, bottom = middle_box(*upright.size, least)
    return np.asarray(upright)[top:bottom, left:right]


@pytest.mark.parametrize("band_pixels", [1, 100, 5000, preprocess.BAND_PIXELS])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_whole_picture_to_the_bit(
    size: tuple[int, int], band_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "BAND_PIXELS", band_pixels)
    image = make_image(1, seed=3, size=size)
    for resize, image_size in ((0, 32), (24, 24), (31, 20), (64, 61), (20, 50), (176, 160)):
        prepared = make_preprocess(image_size, resize)
        whole = resize_whole(image, resize, image_size)
        assert np.array_equal(prepared.keep_middle(image), whole)
        assert np.array_equal(prepared(image), prepared.centre_crop(whole))


@pytest.mark.parametrize("filter", [one for one in Image.Resampling if one != Image.Resampling.NEAREST])
@pytest.mark.parametrize("size", SIZES)
def test_pillow_resizes_one_axis_after_the_other_and_each_line_for_itself(
    filter: Image.Resampling, size: tuple[int, int]
) -> None:
    """What bands rely on. It is so with every filter."""
    image = make_image(1, seed=3, size=size)
    for short in (8, 31, 40, 64):
        width, height = (side * short // min(size) for side in size)
        if size[1] > 100 * size[0] and height < size[1]:
            columns = Image.new("RGB", (size[0], height))
            for left in range(size[0]):
                columns.paste(image.crop((left, 0, left + 1, size[1])).resize((1, height), filter), (left, 0))
            assert columns.resize((width, height), filter).tobytes() == image.resize((width, height), filter).tobytes()
            continue
        rows = Image.new("RGB", (width, size[1]))
        for top in range(0, size[1], 7):
            band = image.crop((0, top, size[0], min(top + 7, size[1])))
            rows.paste(band.resize((width, band.height), filter), (0, top))
        assert rows.resize((width, height), filter).tobytes() == image.resize((width, height), filter).tobytes()


@pytest.mark.parametrize("size", [(200, 33), (17, 90), (1, 50), (403, 100), (7, 900), (1000, 3), (2, 2000), (3000, 1)])
def test_a_part_that_is_resized_alone_is_the_same_but_for_rounding(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow takes the part's borders in single precision, so values at a half may be rounded the other way."""
    monkeypatch.setattr(preprocess, "WHOLE_PIXELS", 0)
    image = make_image(1, seed=3, size=size)
    for resize, image_size in ((8, 8), (24, 24), (31, 20), (64, 61), (20, 50), (176, 160)):
        found = make_preprocess(image_size, resize).keep_middle(image).astype(int)
        difference = np.abs(found - resize_whole(image, resize, image_size))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.1


EXTREMES = [(1, 60_000), (60_000, 1), (2, 20_000), (20_000, 2), (1, 12_000), (3, 400_000), (400_000, 3)]


@pytest.mark.parametrize("size", EXTREMES)
def test_of_extreme_proportions_only_the_middle_is_made(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    resize = Image.Image.resize

    def watch(image: Image.Image, size: tuple[int, int], *args: object) -> Image.Image:
        made.append(size[0] * size[1])
        return resize(image, size, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", watch)
    image = Image.new("L", size, 90)
    is_lying = size[0] > size[1]
    middle = make_preprocess(160, 176).keep_middle(image)
    assert min(middle.shape[:2]) == 176
    assert 352 <= middle.shape[is_lying] <= 355
    assert (middle == 90).all()
    assert make_preprocess(160, 176)(image).shape == (160, 160, 3)
    assert max(made) < 300_000
    assert make_preprocess(160, 0).keep_middle(image).shape[is_lying] <= 163


@pytest.mark.parametrize("is_lying", [True, False])
def test_the_middle_of_a_line_is_its_middle(is_lying: bool) -> None:
    """A line that grows darker evenly: bright before its centre, dark behind it, and 127 or 128 there."""
    values = np.linspace(255, 0, 60_000)
    line = np.repeat((values + 0.5).astype(np.uint8)[None], 2, axis=0)
    line[:, 30_000:] = 0
    line[:, :30_000] = 200
    seen = make_preprocess(160, 176)(Image.fromarray(line if is_lying else line.T))[..., 0]
    across = seen[0] if is_lying else seen[:, 0]
    assert (across[:30] == 200).all()
    assert (across[-30:] == 0).all()
    assert across[79] + across[80] == pytest.approx(200, abs=2)


MODES = {
    "RGB": {},
    "L": {},
    "1": {},
    "P": {"transparency": 7},
    "RGBA": {},
    "LA": {},
    "CMYK": {},
    "I;16": {},
    "I": {},
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", MODES)
def test_bands_are_the_upright_picture(mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "BAND_PIXELS", 70)
    noise = np.random.default_rng(0).integers(0, 256, (13, 21, 4), dtype=np.uint8)
    if mode.startswith("I"):
        image = Image.fromarray(noise[..., :2].astype(np.uint16) @ np.array([1, 256], np.uint16))
        image = image if mode == "I;16" else image.convert("I")
    else:
        bands = {"RGBA": 4, "CMYK": 4, "LA": 2, "L": 1, "P": 1, "1": 1}.get(mode, 3)
        image = Image.fromarray(noise[..., :bands].squeeze(), None if bands != 4 else "RGBA")
        if mode == "CMYK":
            image = Image.frombytes("CMYK", image.size, image.tobytes())
        elif mode == "P":
            image = Image.frombytes("P", image.size, image.tobytes())
            image.putpalette(noise.tobytes()[:768])
        else:
            image = image.convert(mode)
    image.info |= MODES[mode]
    image.getexif()[0x0112] = orientation
    whole = np.asarray(decode_rgb(image))
    assert upright_size(image) == whole.shape[1::-1]
    found = [np.asarray(band) for band in upright_bands(image)]
    assert len(found) > 3
    assert np.array_equal(np.concatenate(found), whole)
    part = np.concatenate([np.asarray(band) for band in upright_bands(image, (2, 3, 11, 12))])
    assert np.array_equal(part, whole[3:12, 2:11])
    assert hash_pixels(image) == hash_pixels(Image.fromarray(whole))


def test_equal_pixels_have_one_hash_and_others_have_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = make_image(0, seed=1)
    for suffix in ("png", "bmp"):
        image.save(tmp_path / f"x.{suffix}")
        assert hash_pixels(open_image(tmp_path / f"x.{suffix}")) == hash_pixels(image)
    assert hash_pixels(image.transpose(Image.Transpose.ROTATE_90)) != hash_pixels(image)
    square = Image.fromarray(np.asarray(image).reshape(60, 32, 3))
    assert hash_pixels(square) != hash_pixels(image), "the same pixels in another shape"
    other = image.copy()
    other.putpixel((47, 39), (0, 0, 0))
    for band_pixels in (10, preprocess.BAND_PIXELS):
        monkeypatch.setattr(preprocess, "BAND_PIXELS", band_pixels)
        assert hash_pixels(other) != hash_pixels(image)


def test_too_little_memory_is_a_reason() -> None:
    assert why_unreadable(MemoryError()) == NO_MEMORY
    assert why_unreadable(OSError("out of memory when reading image file")) == NO_MEMORY
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, np.uint8)
    assert why_unreadable(caught.value) == NO_MEMORY


def test_too_little_memory_for_the_orientation_is_no_upright_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "getexif", fail)
    with pytest.raises(MemoryError):
        make_preprocess(8)(make_image(0, seed=1))


def test_json_round_trip_repeats_every_setting() -> None:
    preprocess = make_preprocess(160, 176)
    text = preprocess.to_json()
    assert Preprocess.from_json(text) == preprocess
    steps = json.loads(text)
    assert list(steps) == ["decode", "resize", "centre_crop", "layout", "normalise"]
    assert steps["normalise"] == {"in_graph": True, "scale": "1/255", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    assert (steps["resize"]["shorter_side_px"], steps["centre_crop"]["side_px"]) == (176, 160)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "null",
        make_preprocess(8).to_json().replace("8", '"8"'),
        make_preprocess(8).to_json().replace("[0.2, 0.3", "[0.0, 0.3"),
        make_preprocess(8).to_json().replace("[0.5, 0.4", "[NaN, 0.4"),
        make_preprocess(8).to_json().replace("[0.5, 0.4", f"[{10**400}, 0.4"),
        make_preprocess(8).to_json().replace('"side_px": 8', f'"side_px": {MAX_SIDE + 1}'),
    ],
)
def test_foreign_metadata_is_refused(text: str) -> None:
    with pytest.raises(WeightsError, match=r"`preprocess` metadata cannot be read .*; export the model again"):
        Preprocess.from_json(text)


def test_from_recipe_takes_the_data_section() -> None:
    preprocess = Preprocess.from_recipe(DataRecipe(image_size=32, resize=0, mean=(0.1, 0.2, 0.3)))
    assert preprocess == Preprocess(32, 0, (0.1, 0.2, 0.3), (0.229, 0.224, 0.225))


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, toolkit.data.preprocess; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("size", [(48, 40), (400, 300), (1, 9000), (9000, 2)])
def test_a_preview_is_the_picture_or_a_smaller_one(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_image(0, seed=1, size=size)
    assert np.array_equal(np.asarray(preview(image)), np.asarray(image))
    image.getexif()[0x0112] = 6
    upright = decode_rgb(image)
    assert np.array_equal(np.asarray(preview(image)), np.asarray(upright))
    monkeypatch.setattr(preprocess, "BAND_PIXELS", 1000)
    monkeypatch.setattr(preprocess, "PREVIEW_SIDE", 24)
    small = preview(image)
    assert max(small.size) == 24
    assert min(small.size) == max(1, round(24 * min(size) / max(size)))
    assert small.tobytes() == upright.resize(small.size, Image.Resampling.BILINEAR).tobytes()
