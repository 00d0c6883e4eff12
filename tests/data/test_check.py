"""`toolkit data`: counts, findings, and their output."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_class_folders, make_image, shared
from data_samples import make_scene
from PIL import Image

from toolkit.data import preprocess, survey
from toolkit.data.check import DataReport, check_dataset
from toolkit.data.findings import Finding
from toolkit.data.formats import FORMAT_NAMES
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
        ("valid", "val/green/1.png", f"not a {FORMAT_NAMES} image, or damaged at its start"),
        ("valid", "val/green/2.png", "the file is empty"),
    ]
    assert [[(place.split, place.name) for place in leak.places] for leak in report.leaks] == [
        [("train", "train/red/2.png"), ("test", "test/blue/copy.bmp")]
    ]
    assert report.near_copies == ()
    assert [(finding.kind, finding.count, finding.example) for finding in report.findings] == [
        ("long", 1, "val/blue/wide.png"),
        ("unreadable", 2, "val/green/1.png"),
        ("in two splits", 1, "train/red/2.png"),
        ("two labels", 1, "train/red/2.png"),
    ]
    assert report.repeats == {"train": 1, "valid": 0, "test": 0}
    assert report.sizes["valid"].width_px == (48, 48, 100)
    assert report.sizes["valid"].height_px == (20, 40, 40)


def test_json_says_all_of_it(flawed: Path) -> None:
    report = check(flawed)
    said = json.loads(json.dumps(report.to_json()))
    assert list(said) == [
        *("name", "sha256", "classes", "splits", "unreadable", "in_two_splits", "notes"),
        *("layout", "near_copies", "two_labels", "findings"),
    ]
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
    assert said["two_labels"] == [
        [
            {"split": "train", "name": "train/red/2.png", "class": "red"},
            {"split": "test", "name": "test/blue/copy.bmp", "class": "blue"},
        ]
    ]
    assert said["findings"][0] == {
        "group": "read in a special way",
        "kind": "long",
        "count": 1,
        "example": "val/blue/wide.png",
        "sentence": "1 picture more than twice as long as wide: the network sees the middle: val/blue/wide.png",
        "remedy": "",
    }


def test_table_says_all_of_it(flawed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(flawed).print_table()
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0].startswith("flawed [set]: 39 images, 3 classes")
    assert any(line.split("│")[1:6] == [" 2     ", " red   ", "     7 ", "     3 ", "    3 "] for line in lines)
    assert lines[-7:] == [
        "read in a special way:",
        "  1 picture more than twice as long as wide: the network sees the middle: val/blue/wide.png",
        "looks wrong:",
        "  2 unreadable images, left out of training, such as val/green/1.png (valid):"
        f" not a {FORMAT_NAMES} image, or damaged at its start; repair or delete them",
        "    val/green/2.png (valid): the file is empty",
        "  1 picture in two splits: train/red/2.png (train) = test/blue/copy.bmp (test); keep each in one split only",
        "  1 picture under two labels: train/red/2.png (red) = test/blue/copy.bmp (blue); keep the right one",
    ]
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
    assert printed.count("(train) = test/") == 20
    assert printed.count("30 pictures in two splits, such as") == 1
    assert "    10 more; --json lists all" in printed.splitlines()


def test_a_split_of_broken_files_has_no_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(3, 1, 1))
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"")
    report = check(root)
    assert report.to_json()["splits"]["test"]["width_px"] is None
    report.print_table()
    assert "3 unreadable images" in capsys.readouterr().out


def test_sizes_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(3, 1, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (root / "test").rglob("*.png"):
        path.unlink()
        make_image(0, seed=ord(path.parent.name[0]), size=(30, 12)).save(path.with_suffix(".jpg"), exif=exif)
    assert check(root).sizes["test"].width_px == (12, 12, 12)


def test_a_picture_under_two_labels_in_one_split(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(6, 1, 1))
    shutil.copy(root / "train" / "red" / "2.png", root / "train" / "blue" / "again.png")
    shutil.copy(root / "train" / "red" / "3.png", root / "train" / "red" / "again.png")
    report = check(root)
    assert report.leaks == ()
    assert report.repeats["train"] == 2
    (finding,) = report.findings
    assert (finding.group, finding.kind, finding.count) == ("looks wrong", "two labels", 1)
    assert finding.sentence == ("1 picture under two labels: train/blue/again.png (blue) = train/red/2.png (red)")


def test_near_copies_are_pairs_and_exact_ones_are_not_among_them(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i, split in enumerate(["train"] * 20 + ["val"] * 5 + ["test"] * 5):
        for name in ("a", "b"):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            make_scene(100 * ord(name) + i).save(folder / f"{i}.png")
    with Image.open(root / "train" / "a" / "3.png") as image:
        image.resize((60, 45)).save(root / "test" / "a" / "smaller.png")
        image.save(root / "test" / "b" / "brighter.jpg", quality=40)
        image.save(root / "val" / "a" / "same.png")
    report = check(root)
    assert [[place.name for place in pair.places] for pair in report.near_copies] == [
        ["train/a/3.png", "test/a/smaller.png"],
        ["train/a/3.png", "test/b/brighter.jpg"],
    ]
    assert [len(leak.places) for leak in report.leaks] == [2]
    (finding,) = (finding for finding in report.findings if finding.kind == "near copies")
    assert finding.sentence == (
        "2 pairs of near copies in two splits (1 under two labels), such as train/a/3.png (train) ~ "
        "test/a/smaller.png (test)"
    )
    assert report.to_json()["near_copies"][0] == [
        {"split": "train", "name": "train/a/3.png"},
        {"split": "test", "name": "test/a/smaller.png"},
    ]


def test_what_is_read_in_a_special_way_is_counted(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(6, 1, 1))
    for i in range(3):
        make_image(0, seed=900 + i).convert("CMYK").save(root / "train" / "red" / f"print{i}.jpg")
    make_image(0, seed=950).save(root / "test" / "red" / "named.png", "JPEG")
    report = check(root)
    assert [(finding.group, finding.kind, finding.count) for finding in report.findings] == [
        ("read in a special way", "cmyk", 3),
        ("read in a special way", "wrong ending", 1),
    ]
    assert report.findings[0].sentence == (
        "3 CMYK pictures, converted to RGB without a colour profile, such as train/red/print0.jpg"
    )
    assert report.findings[1].sentence == (
        "1 picture with the ending of another format, read as what the content is: test/red/named.png"
    )


def test_blank_pictures_look_wrong(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(6, 1, 1))
    Image.new("RGB", (20, 20), (3, 4, 5)).save(root / "train" / "red" / "blank.png")
    almost = Image.new("RGB", (200, 200), (3, 4, 5))
    almost.putpixel((7, 7), (3, 4, 6))
    almost.save(root / "train" / "red" / "almost.png")
    (finding,) = check(root).findings
    assert (finding.kind, finding.sentence) == ("blank", "1 picture of a single colour: train/red/blank.png")


def test_pictures_of_16_bits_that_come_out_nearly_black_look_wrong(tmp_path: Path) -> None:
    """Microscopes and X-ray machines write 10 or 12 bits into files of 16."""
    root = make_class_folders(tmp_path / "set", images_per_class=(6, 1, 1))
    values = np.arange(48 * 40, dtype=np.uint16).reshape(40, 48)
    for name, scale in {"bright": 30, "dark": 2}.items():
        Image.fromarray(values * scale).save(root / "train" / "red" / f"{name}.png")
        Image.fromarray(values * scale).save(root / "train" / "red" / f"{name}.tif")
    dark = [finding for finding in check(root).findings if finding.kind == "nearly black"]
    assert [(finding.group, finding.count, finding.example) for finding in dark] == [
        ("looks wrong", 2, "train/red/dark.png")
    ]
    assert dark[0].remedy == "stretch their values to the whole range of 16 bits, or save them with 8 bits"


def test_an_imbalance_above_ten_looks_wrong(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(6, 1, 1))
    for i in range(54):
        make_image(1, seed=700 + i).save(root / "train" / "green" / f"more{i}.png")
    for split in ("train", "val", "test"):
        (root / split / "green").rename(root / split / "{s} {es} {0}")
    assert check(root).findings == (), "ten times as many"
    (root / "train" / "blue" / "0.png").unlink()
    (finding,) = check(root).findings
    assert (finding.group, finding.kind, finding.count, finding.example) == ("looks wrong", "imbalance", 1, "blue")
    what = "1 class with less than a tenth of the training images of '{s} {es} {0}' (60): 'blue' (5)"
    assert finding.sentence == what


def test_unreadable_images_do_not_count_for_the_balance(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(11, 1, 1))
    for i in range(10):
        (root / "train" / "red" / f"{i}.png").write_bytes(b"")
    found = {finding.kind: finding for finding in check(root).findings}
    assert set(found) == {"unreadable", "unreadable class", "imbalance"}
    assert found["unreadable class"].sentence == (
        "1 class of which more than 25% of the images cannot be read: 'red' loses 10 of 13"
    )
    assert found["imbalance"].sentence.endswith("'red' (1)")


def test_the_layout_and_the_folder_s_findings_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_dataset(DataRecipe(source=str(make_class_folders(tmp_path / "set"))))
    hidden = Finding("passed over", "hidden", 2, "a/._1.png", "2 hidden files, such as a/._1.png")
    report = check_dataset(replace(dataset, layout="split folders train, val, test", findings=(hidden,)))
    assert report.to_json()["layout"] == "split folders train, val, test"
    assert report.findings == (hidden,)
    report.print_table()
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "layout: split folders train, val, test",
        "passed over:",
        "  2 hidden files, such as a/._1.png",
        "nothing looks wrong: every image can be read, and none is in two splits",
    ]


def test_a_long_check_says_so_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(3, 1, 1))
    monkeypatch.setattr(survey, "LONG_S", float("inf"))
    check(root)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(survey, "LONG_S", 0.0)
    check(root)
    assert "looking at 15 images takes about" in capsys.readouterr().err


def test_pixels_are_hashed_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(6, 3, 3))
    shutil.copy(root / "train" / "red" / "2.png", root / "test" / "red" / "again.png")
    with Image.open(root / "train" / "red" / "3.png") as image:
        image.putpixel((47, 39), (0, 0, 0))
        image.save(root / "test" / "red" / "last pixel.png")
    for pixels in (1, 48 * 7, 2**20):
        monkeypatch.setattr(preprocess, "BAND_PIXELS", pixels)
        assert [str(leak) for leak in check(root).leaks] == ["train/red/2.png (train) = test/red/again.png (test)"], (
            pixels
        )


def test_fashion_mnist_has_few_near_copies(fashion_mnist: None) -> None:
    """Of 16,000 pictures in validation and test; clothes of one kind look alike, and few are accused."""
    dataset = load_dataset(DataRecipe(source="fashion-mnist"))
    some = replace(dataset, train=dataset.train.subset(range(6000)), valid=dataset.valid.subset(range(1000)))
    report = check_dataset(replace(some, test=dataset.test.subset(range(1000))))
    assert len(report.near_copies) <= 4
    assert report.leaks == ()


@pytest.mark.slow
def test_photographs_have_the_near_copies_that_people_see() -> None:
    """All six were looked at: five are the same picture or two shots of one dish, one is a shot from nearer by."""
    report = check(shared("data", "food10"))
    assert [tuple(place.name for place in pair.places) for pair in report.near_copies] == [
        ("training/6_2597.jpg", "validation/6_2600.jpg"),
        ("training/7_2879.jpg", "validation/7_2910.jpg"),
        ("training/1_672.jpg", "testing/1_3973.jpg"),
        ("training/2_976.jpg", "testing/2_4086.jpg"),
        ("training/4_1691.jpg", "testing/4_4319.jpg"),
        ("validation/5_2075.jpg", "testing/5_4444.jpg"),
    ]
    assert len(report.leaks) == 2
