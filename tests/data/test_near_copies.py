"""Near copies: the hash, who is found, and who is not accused."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from data_samples import make_scene
from PIL import Image, ImageDraw, ImageEnhance

from toolkit.data import near_copies
from toolkit.data.near_copies import SIDE, find_near_copies, hash_thumbnails, make_thumbnail, require_likeness

Change = Callable[[Image.Image], Image.Image]


def make_shirt(seed: int) -> Image.Image:
    """A plain bright shape on black, a few px wider or longer each time: all look alike, and none is a copy."""
    draw = np.random.default_rng(seed)
    image = Image.new("RGB", (28, 28))
    x, width, top, bottom, arm, notch = (int(draw.integers(*bounds)) for bounds in BOUNDS)
    pen, level = ImageDraw.Draw(image), int(draw.integers(120, 250))
    pen.rectangle((x, top, x + width, bottom), fill=(level,) * 3)
    pen.rectangle((x - 4, top, x + width + 4, top + arm), fill=(level,) * 3)
    pen.rectangle((14 - notch, top, 14 + notch, top + notch), fill=(0, 0, 0))
    return image


BOUNDS = ((5, 10), (9, 16), (1, 6), (18, 27), (3, 14), (0, 4))


def save_as(kind: str, **options: int) -> Change:
    def encode(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return Image.open(file).convert("RGB")

    return encode


def crop(share: float) -> Change:
    def cut(image: Image.Image) -> Image.Image:
        x, y = image.width * share, image.height * share
        return image.crop((round(x), round(y), round(image.width - x), round(image.height - y)))

    return cut


CHANGES: dict[str, Change] = {
    "JPEG of quality 30": save_as("JPEG", quality=30),
    "WebP": save_as("WEBP", quality=50),
    "half as large": lambda image: image.resize((60, 45)),
    "other proportions": lambda image: image.resize((90, 90), Image.Resampling.BICUBIC),
    "2 % cut off each side": crop(0.02),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "all of it": lambda image: save_as("JPEG", quality=50)(crop(0.02)(image).resize((80, 60))),
}


def find(images: list[Image.Image], splits: list[int], labels: list[int] | None = None) -> list[tuple[int, int]]:
    thumbnails = np.stack([make_thumbnail(image) for image in images])
    return find_near_copies(thumbnails, np.array(labels or [0] * len(images)), np.array(splits))


SCENES = [make_scene(seed) for seed in range(40)]


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(name: str) -> None:
    copies = [CHANGES[name](SCENES[i]) for i in (3, 17)]
    assert find([*SCENES, *copies], [0] * 30 + [1] * 10 + [2] * 2) == [(3, 40), (17, 41)]


def test_different_pictures_are_not_near_copies() -> None:
    assert find(SCENES, [i % 3 for i in range(40)]) == []


def test_pictures_that_all_look_alike_are_not_accused_but_a_copy_among_them_is() -> None:
    shirts = [make_shirt(seed) for seed in range(60)]
    thumbnails = np.stack([make_thumbnail(image) for image in shirts])
    required = require_likeness(thumbnails, np.zeros(60, dtype=np.int64), np.ones(60, dtype=bool))
    assert required > 0.9
    splits = [0] * 40 + [1] * 20
    assert find(shirts, splits) == []
    copy = save_as("JPEG", quality=90)(shirts[5])
    assert find([*shirts, copy], [*splits, 1]) == [(5, 60)]


def test_what_is_required_lies_between_its_bounds() -> None:
    scenes = np.stack([make_thumbnail(image) for image in SCENES])
    labels, clear = np.zeros(40, dtype=np.int64), np.ones(40, dtype=bool)
    assert require_likeness(scenes, labels, clear) < 0.9
    same = np.repeat(scenes[:1], 40, axis=0)
    assert require_likeness(same, labels, clear) == near_copies.MOST_LIKENESS
    assert require_likeness(scenes, np.arange(40), clear) == near_copies.MOST_LIKENESS, "no two of one class"
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)) for i in range(40)]
    assert require_likeness(np.stack(list(map(make_thumbnail, noise))), labels, clear) == near_copies.LEAST_LIKENESS


def test_a_picture_in_another_colour_is_another_picture() -> None:
    def sign(colour: tuple[int, int, int]) -> Image.Image:
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).regular_polygon((32, 32, 20), 3, fill=colour)
        return image

    red, green = sign((200, 30, 30)), sign((20, 120, 20))
    assert find([*SCENES, red, green], [0] * 41 + [1]) == []
    assert find([*SCENES, red, ImageEnhance.Brightness(red).enhance(0.8)], [0] * 41 + [1]) == [(40, 41)]


def test_pictures_without_contrast_are_not_compared() -> None:
    draw = np.random.default_rng(0)
    sky = [Image.fromarray((200 + draw.integers(0, 3, (60, 80, 3))).astype(np.uint8)) for _ in range(6)]
    assert find([*SCENES, *sky, sky[0]], [0] * 46 + [1]) == []


def test_copies_within_a_split_do_not_count() -> None:
    assert find([*SCENES, SCENES[0]], [0] * 20 + [1] * 20 + [0]) == []


def test_each_picture_has_one_partner_however_many_copies_there_are() -> None:
    draw = np.random.default_rng(0)
    copies = [
        Image.fromarray((np.asarray(SCENES[0]) + draw.integers(-40, 41, (90, 120, 3))).clip(0, 255).astype(np.uint8))
        for _ in range(near_copies.CANDIDATES + 40)
    ]
    found = find([*copies, *SCENES], [0] * len(copies) + [1] * 40)
    assert [j for _, j in found] == [len(copies)]


def test_the_partner_is_the_nearest_one() -> None:
    copies = [CHANGES[name](SCENES[7]) for name in ("2 % cut off each side", "JPEG of quality 30", "all of it")]
    assert find([*copies, *SCENES], [0] * 3 + [1] * 40) == [(1, 10)]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [*SCENES, *(crop(0.01)(image) for image in SCENES)]
    splits = [0] * 40 + [1] * 20 + [2] * 20
    whole = find(images, splits)
    assert whole == [(i, i + 40) for i in range(40)]
    monkeypatch.setattr(near_copies, "_BLOCK_DISTANCES", 90)
    monkeypatch.setattr(near_copies, "_BLOCK_PAIRS", 3)
    assert find(images, splits) == whole


def test_no_pictures_and_one_split_have_none() -> None:
    nothing = np.zeros((0, near_copies.THUMBNAIL_BYTES), dtype=np.uint8)
    assert find_near_copies(nothing, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)) == []
    assert find(SCENES[:1], [0]) == []
    assert find(SCENES, [2] * 40) == []


def test_the_hash_is_the_sign_of_the_lowest_frequencies() -> None:
    """Against the definition of the discrete cosine transform, term by term in float64."""
    thumbnail = make_thumbnail(SCENES[0])
    light = thumbnail[: SIDE**2].reshape(SIDE, SIDE).astype(np.float64)
    frequencies = np.zeros((8, 8))
    for u, v in np.ndindex(8, 8):
        for y, x in np.ndindex(SIDE, SIDE):
            angles = np.pi * u * (2 * y + 1) / (2 * SIDE), np.pi * v * (2 * x + 1) / (2 * SIDE)
            frequencies[u, v] += light[y, x] * np.cos(angles[0]) * np.cos(angles[1])
    bits = (frequencies > np.median(frequencies.ravel()[1:])).ravel()
    bits[0] = False
    expected = np.packbits(bits).view(np.uint64)[0]
    assert hash_thumbnails(thumbnail[None])[0] == expected


def test_the_hash_ignores_brightness_and_colour() -> None:
    thumbnail = make_thumbnail(SCENES[0])[None].copy()
    brighter = thumbnail.copy()
    brighter[:, : SIDE**2] = brighter[:, : SIDE**2] // 2 + 60
    thumbnail[:, : SIDE**2] = thumbnail[:, : SIDE**2] // 2
    thumbnail[:, SIDE**2 :] = 128
    assert hash_thumbnails(thumbnail) == hash_thumbnails(brighter)
