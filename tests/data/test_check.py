"""`toolkit data`: counts, findings, and their output."""

import json
from pathlib import Path

import pytest
from conftest import make_class_folders, make_image
from PIL import Image

from toolkit.data.check import DataReport, check_dataset
from toolkit.data.sources import load_dataset
from toolkit.settings import DataRecipe


def check(root: Path) -> DataReport:
    return check_dataset(load_dataset(DataRecipe(source=str(root))))


@pytest.fixture
def flawed(tmp_path: Path) -> Path:
    """A set with a picture in two splits (another format, another class), a repeat, and two broken files."""
    root = make_class_folders(tmp_path / "flawed [set]", images_per_class=(6, 3, 3))
    with Image.open(root / "train" / "red" / "2.png") as image:
        image.save(root / "test" / "blue" / "copy.bmp")
    (root / "train" / "red" / "twin.png").write_bytes((root / "train" / "red" / "4.png").read_bytes())
    (root / "val" / "green" / "1.png").write_bytes(b"GIF?")
    (root / "val" / "green" / "2.png").write_bytes(b"")
    make_image(0, seed=77, size=(100, 20)).save(root / "val" / "blue" / "wide.png")
    return root


def test_a_sound_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check(make_class_folders(tmp_path / "set"))
    assert report.counts == {"train": [12] * 3, "valid": [4] * 3, "test": [4] * 3}
    assert report.unreadable == ()
    assert report.leaks == ()
    assert report.sizes["train"].width_px == (48, 48, 48)
    assert report.sizes["train"].height_px == (40, 40, 40)
    report.print_table()
    assert "every image can be read, and none is in two splits" in capsys.readouterr().out


def test_flaws_are_found(flawed: Path) -> None:
    report = check(flawed)
    assert report.counts == {"train": [6, 6, 7], "valid": [4, 3, 3], "test": [4, 3, 3]}
    assert [(item.split, item.name, item.reason) for item in report.unreadable] == [
        ("valid", "val/green/1.png", "not a JPEG, PNG, WebP, BMP or GIF image, or damaged at its start"),
        ("valid", "val/green/2.png", "the file is empty"),
    ]
    assert [leak.copies for leak in report.leaks] == [(("train", "train/red/2.png"), ("test", "test/blue/copy.bmp"))]
    assert report.repeats == {"train": 1, "valid": 0, "test": 0}
    assert report.sizes["valid"].width_px == (48, 48, 100)
    assert report.sizes["valid"].height_px == (20, 40, 40)


def test_json_says_all_of_it(flawed: Path) -> None:
    report = check(flawed)
    said = json.loads(json.dumps(report.to_json()))
    assert list(said) == ["name", "sha256", "classes", "splits", "unreadable", "in_two_splits", "notes"]
    assert said["name"] == "flawed [set]"
    assert said["classes"] == ["blue", "green", "red"]
    assert said["splits"]["valid"] == {
        "images": 10,
        "unreadable": 2,
        "repeated": 0,
        "per_class": {"blue": 4, "green": 3, "red": 3},
        "width_px": {"min": 48, "median": 48, "max": 100},
        "height_px": {"min": 20, "median": 40, "max": 40},
    }
    assert said["unreadable"][1] == {"split": "valid", "name": "val/green/2.png", "reason": "the file is empty"}
    assert said["in_two_splits"] == [
        [{"split": "train", "name": "train/red/2.png"}, {"split": "test", "name": "test/blue/copy.bmp"}]
    ]


def test_table_says_all_of_it(flawed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(flawed).print_table()
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0].startswith("flawed [set]: 39 images, 3 classes")
    assert any(line.split("│")[1:6] == [" 2     ", " red   ", "     7 ", "     3 ", "    3 "] for line in lines)
    assert "unreadable: val/green/2.png (valid): the file is empty" in lines
    assert "in two splits: train/red/2.png (train) = test/blue/copy.bmp (test)" in lines
    assert lines[-1] == "found: 2 unreadable, 1 in two splits"
    assert any("100×40" in line for line in lines)


def test_a_flood_of_leaks_is_cut_in_the_table_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(10, 1, 1))
    for name in ("blue", "green", "red"):
        for i in range(10):
            (root / "test" / name / f"{i}.png").write_bytes((root / "train" / name / f"{i}.png").read_bytes())
    report = check(root)
    assert len(report.to_json()["in_two_splits"]) == 30
    report.print_table()
    printed = capsys.readouterr().out
    assert printed.count("in two splits: train/") == 20
    assert "in two splits: 10 more pictures; --json lists all" in printed


def test_a_split_of_broken_files_has_no_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(3, 1, 1))
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"")
    report = check(root)
    assert report.to_json()["splits"]["test"]["width_px"] is None
    report.print_table()
    assert "found: 3 unreadable" in capsys.readouterr().out


def test_sizes_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(3, 1, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (root / "test").rglob("*.png"):
        path.unlink()
        make_image(0, seed=ord(path.parent.name[0]), size=(30, 12)).save(path.with_suffix(".jpg"), exif=exif)
    assert check(root).sizes["test"].width_px == (12, 12, 12)
