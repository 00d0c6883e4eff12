"""One list of picture formats, which Pillow knows, and which every text that names formats names whole."""

from PIL import Image

from toolkit.data.formats import (
    DATA_SET_ENDINGS,
    DATA_SET_NAMES,
    FORMAT_NAMES,
    FORMATS,
    PICTURE_ENDINGS,
    READERS,
    join_names,
)
from toolkit.demo.texts import TEXTS


def test_pillow_reads_each_by_its_endings() -> None:
    Image.init()
    assert set(READERS) <= set(Image.OPEN)
    for ending in PICTURE_ENDINGS:
        assert Image.registered_extensions()[ending] in READERS


def test_a_data_set_takes_all_but_gif() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp"} == DATA_SET_ENDINGS
    assert {".gif"} == PICTURE_ENDINGS - DATA_SET_ENDINGS
    assert DATA_SET_NAMES == ("jpg", "jpeg", "png", "webp", "bmp")


def test_in_words() -> None:
    assert FORMAT_NAMES == "JPEG, PNG, WebP, BMP or GIF"
    assert join_names(("png", "bmp")) == "png or bmp"


def test_the_demo_names_the_formats_that_it_takes_in_every_language() -> None:
    for language, texts in TEXTS.items():
        message = texts["not_picture"]
        assert all(name in message for name in FORMATS), language
