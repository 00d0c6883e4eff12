"""`toolkit data`: what it prints, and --strict, which makes an error of every finding."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_class_folders, make_image, make_png
from PIL import Image, ImageEnhance

from toolkit.cli import preparation
from toolkit.data import sources
from toolkit.data.dataset import Dataset
from toolkit.data.findings import Finding
from toolkit.data.reading import KINDS
from toolkit.errors import DataError
from toolkit.settings import DataRecipe

Spoil = Callable[[Path], object]

DEEP_ROWS = b"".join(b"\0" + bytes(range(48)) for _ in range(8))


def picture(seed: int = 77) -> Image.Image:
    return make_image(0, seed=seed)


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def palette_with_a_hole() -> Image.Image:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "P")
    image.putpalette([*range(256)] * 3)
    return image


def add_a_near_copy(root: Path) -> None:
    light = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    scene = Image.fromarray(light).resize((96, 72), Image.Resampling.BICUBIC)
    scene.save(root / "train" / "red" / "scene.png")
    ImageEnhance.Brightness(scene).enhance(0.8).save(root / "test" / "red" / "scene.jpg")


def add_many(root: Path) -> None:
    for i in range(50):
        picture(1000 + i).save(root / "train" / "red" / f"more{i}.png")


def spoil_a_class(root: Path) -> None:
    for split in ("train", "val"):
        for path in (root / split / "green").iterdir():
            path.write_bytes(b"")


SPOILS: dict[str, Spoil] = {
    "16 bits": lambda root: (root / "train/red/deep.png").write_bytes(make_png(8, 8, DEEP_ROWS, depth=16)),
    "alpha": lambda root: Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(root / "train/red/hole.png"),
    "palette with transparency": lambda root: palette_with_a_hole().save(root / "train/red/p.png", transparency=3),
    "cmyk": lambda root: picture().convert("CMYK").save(root / "train/red/print.jpg"),
    "animated": lambda root: picture().save(root / "train/red/a.webp", save_all=True, append_images=[picture(78)]),
    "rotated": lambda root: picture().save(root / "train/red/phone.jpg", exif=with_orientation(6)),
    "long": lambda root: make_image(0, seed=77, size=(90, 30)).save(root / "train/red/panorama.png"),
    "wrong ending": lambda root: picture().save(root / "train/red/real.png", "WEBP"),
    "blank": lambda root: Image.new("RGB", (9, 9), "red").save(root / "train/red/plain.png"),
    "unreadable": lambda root: (root / "train/red/broken.png").write_bytes(b"\x89PNG not really"),
    "unreadable class": spoil_a_class,
    "in two splits": lambda root: shutil.copy(root / "train/red/0.png", root / "test/red/copy.png"),
    "near copies": add_a_near_copy,
    "two labels": lambda root: shutil.copy(root / "train/red/0.png", root / "train/blue/copy.png"),
    "imbalance": add_many,
}
"""Kind → what gives a sound data set a finding of that kind."""


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return make_class_folders(tmp_path / "set", images_per_class=(5, 2, 2))


def test_every_kind_is_tried() -> None:
    tried = {*SPOILS}
    assert set(KINDS) - tried == {"colour space"}, "which no format that saves can hold here"


def test_strict_accepts_a_sound_set(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preparation.data(str(sound), strict=True)
    assert "every image can be read, and none is in two splits" in capsys.readouterr().out


@pytest.mark.parametrize("kind", SPOILS)
def test_strict_makes_each_finding_an_error_that_is_printed_before(
    kind: str, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SPOILS[kind](sound)
    preparation.data(str(sound), as_json=True)
    findings = json.loads(capsys.readouterr().out)["findings"]
    (finding,) = (finding for finding in findings if finding["kind"] == kind)
    with pytest.raises(DataError) as error:
        preparation.data(str(sound), strict=True)
    assert f"  {finding['sentence']}" in capsys.readouterr().out
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)
    assert f" in {sound}" in str(error.value)
    assert finding["kind"] in str(error.value) or finding["sentence"] in str(error.value)
    assert "or leave out --strict to accept" in str(error.value)


def test_strict_names_the_only_finding_with_its_example_and_its_remedy(sound: Path) -> None:
    SPOILS["unreadable"](sound)
    with pytest.raises(DataError) as error:
        preparation.data(str(sound), strict=True)
    problem, remedy = error.value.args
    assert problem.startswith(f"1 finding in {sound}: 1 unreadable image, left out of training: train/red/broken.png (")
    assert remedy == "repair or delete them, or leave out --strict to accept them"


def test_strict_counts_all_findings_and_names_what_looks_wrong_before_what_is_merely_special(sound: Path) -> None:
    for kind in ("rotated", "cmyk", "two labels"):
        SPOILS[kind](sound)
    with pytest.raises(DataError) as error:
        preparation.data(str(sound), strict=True)
    assert error.value.problem == (
        f"3 findings in {sound} (cmyk, rotated, two labels), among them: 1 picture under two labels: "
        "train/blue/copy.png (blue) = train/red/0.png (red)"
    )


def test_strict_covers_what_reading_the_folder_found(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = Finding("passed over", "hidden", 2, "a/._1.png", "2 hidden files, such as a/._1.png")

    def load(recipe: DataRecipe) -> Dataset:
        return replace(sources.load_directory(Path(recipe.source), recipe), findings=(hidden,))

    monkeypatch.setattr(sources, "load_dataset", load)
    with pytest.raises(DataError) as error:
        preparation.data(str(sound), strict=True)
    assert str(error.value) == (
        f"1 finding in {sound}: 2 hidden files, such as a/._1.png; "
        "take those files out, or leave out --strict to accept them"
    )


def test_findings_without_strict_are_no_error(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for spoil in SPOILS.values():
        spoil(sound)
    preparation.data(str(sound))
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("read in a special way:") < lines.index("looks wrong:")
    assert not any("nothing looks wrong" in line for line in lines)


def test_strict_json_is_whole_before_the_error(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SPOILS["cmyk"](sound)
    with pytest.raises(DataError):
        preparation.data(str(sound), strict=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["findings"][0]["kind"] == "cmyk"


def test_the_document_explains_every_kind() -> None:
    document = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for kind in (*SPOILS, *KINDS):
        assert f"`{kind}`" in document
