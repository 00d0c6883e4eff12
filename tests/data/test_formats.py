"""One list of picture formats, which Pillow knows, and which every text that names formats names whole."""

from pathlib import Path

import pytest
from PIL import Image

from toolkit.data.formats import (
    FORMAT_NAMES,
    FORMATS,
    PICTURE_ENDINGS,
    READERS,
    UNREAD_PICTURE_ENDINGS,
    count_endings,
    ending_of,
    find_way_out,
    is_picture,
    join_names,
    name_endings,
)
from toolkit.demo.texts import TEXTS


def test_every_ending_that_pillow_knows_of_these_formats_is_taken() -> None:
    Image.init()
    assert set(READERS) <= set(Image.OPEN)
    known = {ending for ending, reader in Image.registered_extensions().items() if reader in READERS}
    # a .pfm holds floats, and a .mpo is a JPEG with further pictures behind it
    assert known - {".pfm"} | {".mpo"} == PICTURE_ENDINGS


def test_an_ending_is_read_or_not() -> None:
    assert not PICTURE_ENDINGS & UNREAD_PICTURE_ENDINGS
    assert all(ending == ending.lower() and ending.startswith(".") for ending in PICTURE_ENDINGS)


@pytest.mark.parametrize(
    ("name", "ending", "taken"),
    [
        ("a.jpg", ".jpg", True),
        ("A/B.JFIF", ".jfif", True),
        ("a.b.TIFF", ".tiff", True),
        ("a.gif", ".gif", True),
        ("a.heic", ".heic", False),
        ("a.jpg.txt", ".txt", False),
        ("picture", "", False),
        (".jpg", "", False),
    ],
)
def test_the_ending_decides_in_capitals_or_not(name: str, ending: str, *, taken: bool) -> None:
    assert ending_of(name) == ending
    assert is_picture(name) == taken


@pytest.mark.parametrize(
    ("names", "said", "way_out"),
    [
        (["a.txt", "b.TXT", "c.xml"], "2 .txt, 1 .xml", ""),
        (["a.heic", "b.txt"], "1 .heic, 1 .txt", "convert them to JPEG or PNG"),
        (["a"], "1 without ending", "give them endings such as .jpg or .png"),
        (
            ["a", "b.NEF"],
            "1 without ending, 1 .nef",
            "convert them to JPEG or PNG or give them endings such as .jpg or",
        ),
        (["a.\udce9"], "1 .\\xe9", ""),
        ([], "", ""),
    ],
)
def test_other_endings_have_a_way_out(names: list[str], said: str, way_out: str) -> None:
    endings = count_endings(names)
    assert name_endings(endings) == said
    assert find_way_out(endings).startswith(way_out)
    assert bool(find_way_out(endings)) == bool(way_out)


def test_the_document_lists_every_ending() -> None:
    document = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for name, endings in FORMATS.items():
        assert f"| {name} | {' '.join(f'`{ending}`' for ending in endings)} |" in document


def test_in_words() -> None:
    assert FORMAT_NAMES == "JPEG, PNG, WebP, BMP, GIF, TIFF or PPM"
    assert join_names(("png", "bmp")) == "png or bmp"


def test_the_demo_names_the_formats_that_it_takes_in_every_language() -> None:
    for language, texts in TEXTS.items():
        message = texts["not_picture"]
        assert all(name in message for name in FORMATS), language
