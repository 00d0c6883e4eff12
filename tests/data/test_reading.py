"""What is special about a picture's file: each kind, and pictures that are of none."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image, make_png
from PIL import Image

from toolkit.data.picture_file import open_image
from toolkit.data.preprocess import UNREADABLE, decode_rgb
from toolkit.data.reading import KINDS, find_kinds

Make = Callable[[Path], object]

RED = Image.new("RGB", (8, 6), "red")


def orient(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def palette(transparency: int | None) -> Make:
    image = Image.new("P", (8, 6), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    options = {} if transparency is None else {"transparency": transparency}
    return lambda path: image.save(path, **options)


def deep(colour: int, channels: int) -> Make:
    rows = b"".join(b"\0" + bytes(range(8 * channels * 2)) for _ in range(6))
    return lambda path: path.write_bytes(make_png(8, 6, rows, depth=16, colour=colour))


def frames(path: Path) -> None:
    RED.save(path, save_all=True, append_images=[Image.new("RGB", (8, 6), "blue")])


def write(mode: str, colour: object, **options: object) -> Make:
    return lambda path: Image.new(mode, (8, 6), colour).save(path, **options)  # type: ignore[arg-type]


SPECIAL: list[tuple[str, str, Make]] = [
    ("16 bits", "grey.png", deep(colour=0, channels=1)),
    ("16 bits", "rgb.png", deep(colour=2, channels=3)),
    ("alpha", "hole.png", write("RGBA", (255, 0, 0, 254))),
    ("alpha", "grey.png", write("LA", (9, 0))),
    ("alpha", "colour-key.png", write("RGB", (255, 0, 0), transparency=(255, 0, 0))),
    ("alpha", "hole.webp", write("RGBA", (255, 0, 0, 100), lossless=True)),
    ("palette with transparency", "key.png", palette(1)),
    ("cmyk", "print.jpg", write("CMYK", (0, 255, 255, 0))),
    ("animated", "film.webp", frames),
    ("animated", "film.png", frames),
    ("rotated", "phone.jpg", lambda path: RED.save(path, exif=orient(6))),
    ("rotated", "over-head.jpg", lambda path: RED.save(path, exif=orient(3))),
    ("long", "panorama.png", lambda path: make_image(0, 1, (41, 20)).save(path)),
    ("long", "tower.jpg", lambda path: make_image(0, 1, (41, 20)).save(path, exif=orient(8))),
    ("wrong ending", "picture.jpg", lambda path: RED.save(path, "PNG")),
    ("wrong ending", "PICTURE.PNG", lambda path: RED.save(path, "WEBP")),
]

PLAIN: list[tuple[str, Make]] = [
    ("rgb.png", RED.save),
    ("GREY.JPEG", RED.convert("L").save),
    ("bits.png", RED.convert("1").save),
    ("palette.png", palette(None)),
    ("unused-key.png", palette(0)),
    ("opaque.png", write("RGBA", (255, 0, 0, 255))),
    ("colour-key.png", write("RGB", (255, 0, 0), transparency=(0, 0, 255))),
    ("upright.jpg", lambda path: RED.save(path, exif=orient(1))),
    ("nonsense.jpg", lambda path: RED.save(path, exif=orient(77))),
    ("twice-as-long.png", lambda path: make_image(0, 1, (40, 20)).save(path)),
    ("short.bmp", write("RGB", (1, 2, 3))),
]


def kinds_in(image: Image.Image, name: str) -> set[str]:
    return find_kinds(image, name)


def kinds_of(path: Path) -> set[str]:
    return kinds_in(open_image(path), f"train/{path.name}")


@pytest.mark.parametrize(("kind", "name", "make"), SPECIAL)
def test_each_kind_is_seen(kind: str, name: str, make: Make, tmp_path: Path) -> None:
    make(tmp_path / name)
    seen = kinds_of(tmp_path / name)
    assert kind in seen
    assert seen - {kind} <= ({"rotated"} if name == "tower.jpg" else set())
    assert set(KINDS) >= seen


@pytest.mark.parametrize(("name", "make"), PLAIN)
def test_plain_pictures_are_of_no_kind(name: str, make: Make, tmp_path: Path) -> None:
    make(tmp_path / name)
    assert kinds_of(tmp_path / name) == set()


def test_a_picture_may_be_of_several_kinds(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    Image.new("CMYK", (90, 20)).save(path, "JPEG", exif=orient(6))
    assert kinds_of(path) == {"cmyk", "rotated", "long", "wrong ending"}


def test_a_second_picture_in_a_phone_s_jpeg_is_no_wrong_ending(tmp_path: Path) -> None:
    RED.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[RED])
    assert kinds_of(tmp_path / "a.jpg") == {"animated"}


@pytest.mark.parametrize("kind", [*dict.fromkeys(kind for kind, _, _ in SPECIAL)])
def test_looking_changes_nothing_of_what_is_decoded(kind: str, tmp_path: Path) -> None:
    for wanted, name, make in SPECIAL:
        if wanted == kind:
            make(tmp_path / name)
            image = open_image(tmp_path / name)
            find_kinds(image, name)
            expected = decode_rgb(open_image(tmp_path / name))
            np.testing.assert_array_equal(np.asarray(decode_rgb(image)), np.asarray(expected))


def test_pictures_in_memory_have_no_ending() -> None:
    """Names of named sets are numbers."""
    assert kinds_in(Image.fromarray(np.zeros((28, 28), dtype=np.uint8)), "train/00001") == set()


@pytest.mark.parametrize(
    ("format_", "mode", "kind"),
    [("TIFF", "F", "colour space"), ("TIFF", "LAB", "colour space"), ("PPM", "I", "16 bits")],
)
def test_modes_of_other_trades(format_: str, mode: str, kind: str) -> None:
    """Whichever formats are accepted, a picture of such a mode is one."""
    file = io.BytesIO()
    Image.new(mode, (8, 6)).save(file, format_)
    assert kind in kinds_in(Image.open(file), "a.tif")


def test_deep_colour_in_a_portable_pixmap() -> None:
    assert kinds_in(Image.open(io.BytesIO(b"P6 2 2 65535\n" + bytes(24))), "a.ppm") >= {"16 bits"}
    assert "16 bits" not in kinds_in(Image.open(io.BytesIO(b"P6 2 2 255\n" + bytes(12))), "a.ppm")


def test_a_turned_tiff() -> None:
    """Pillow turns it by itself as it loads it."""
    file = io.BytesIO()
    RED.save(file, "TIFF", exif=orient(6))
    image = Image.open(file)
    assert "rotated" in find_kinds(image, "a.tif")
    assert decode_rgb(image).size == (6, 8)


@pytest.mark.parametrize("exif", [Image.Exif(), orient(6)])
@pytest.mark.parametrize(("name", "kept"), [("cut.png", 2000), ("cut.jpg", 700), ("cut.webp", 700), ("cut.bmp", 700)])
def test_a_damaged_picture_raises_what_decoding_raises(name: str, kept: int, exif: Image.Exif, tmp_path: Path) -> None:
    path = tmp_path / name
    make_image(0, 1).save(path, exif=exif)
    path.write_bytes(path.read_bytes()[:kept])
    for decode in (decode_rgb, lambda image: find_kinds(image, name)):
        with pytest.raises(UNREADABLE):
            decode(open_image(path))


def test_a_picture_with_broken_pixels_stays_unreadable(tmp_path: Path) -> None:
    """Pillow hands out a half-loaded picture without a word if it is asked a second time."""
    content = bytearray(make_png(8, 6, b"".join(b"\0" + bytes(24) for _ in range(6))))
    start = content.index(b"IDAT") + 4
    content[start + 4 : start + 12] = b"\xff" * 8
    (tmp_path / "a.png").write_bytes(content)
    for decode in (decode_rgb, lambda image: find_kinds(image, "a.png")):
        with pytest.raises(UNREADABLE):
            decode(open_image(tmp_path / "a.png"))


@pytest.mark.parametrize("kept", range(60, 400, 20))
def test_an_animation_is_readable_if_its_first_frame_is(kept: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).convert("P") for _ in range(3)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    (tmp_path / "a.gif").write_bytes((tmp_path / "a.gif").read_bytes()[: kept * 5])
    try:
        expected = np.asarray(decode_rgb(open_image(tmp_path / "a.gif")))
    except UNREADABLE:
        with pytest.raises(UNREADABLE):
            kinds_of(tmp_path / "a.gif")
        return
    image = open_image(tmp_path / "a.gif")
    find_kinds(image, "a.gif")
    np.testing.assert_array_equal(np.asarray(decode_rgb(image)), expected)
