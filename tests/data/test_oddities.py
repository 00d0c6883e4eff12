"""What reading a folder shows before any image is decoded: kinds, counts, examples, and what to do."""

from pathlib import Path

import pytest
from conftest import make_image

from toolkit.data.dataset import Dataset
from toolkit.data.findings import Finding
from toolkit.data.oddities import FEW_IMAGES
from toolkit.data.sources import load_dataset
from toolkit.errors import DataError
from toolkit.settings import DataRecipe


def put(root: Path, *names: str) -> Path:
    """A small image at each name that ends like one, else a file of a byte."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            make_image(0, seed=seed, size=(6, 5)).save(path)
        else:
            path.write_bytes(b"x")
    return root


def pictures(*folders: str, count: int = 10) -> list[str]:
    return [f"{folder}/{i}.png" for folder in folders for i in range(count)]


def load(root: Path) -> Dataset:
    return load_dataset(DataRecipe(source=str(root)))


def only(dataset: Dataset, kind: str) -> Finding:
    (finding,) = (finding for finding in dataset.findings if finding.kind == kind)
    return finding


def test_a_plain_set_has_none(tmp_path: Path) -> None:
    dataset = load(put(tmp_path, *pictures("cat", "dog")))
    assert dataset.findings == ()
    assert dataset.layout == "class folders"
    assert dataset.remarks == list(dataset.notes)


@pytest.mark.parametrize(
    ("names", "kind", "sentence"),
    [
        (["cat/._0.png"], "hidden", "1 hidden file: cat/._0.png"),
        ([".git/config", ".cache/x"], "hidden", "2 hidden folders, such as .cache"),
        ([".git/config", "cat/.x"], "hidden", "2 hidden files and folders, such as .git"),
        (["cat/Thumbs.db"], "system", "1 system file: cat/Thumbs.db"),
        (["cat/@eaDir/0.png", "dog/@eaDir/0.png"], "system", "2 system folders, such as cat/@eaDir"),
        (["cat/1.png.part"], "partial", "1 unfinished download: cat/1.png.part"),
        (
            ["cat/a.txt", "cat/b.txt", "dog/{c}.{s}"],
            "other endings",
            "3 files with endings that are not read, such as cat/a.txt (2 .txt, 1 .{s})",
        ),
        (["README"], "other endings", "1 file with endings that are not read: README (1 without ending)"),
        (
            ["cat/line\nbreak.txt"],
            "other endings",
            "1 file with endings that are not read: cat/line\\nbreak.txt (1 .txt)",
        ),
    ],
)
def test_what_is_passed_over_is_counted_with_an_example(
    tmp_path: Path, names: list[str], kind: str, sentence: str
) -> None:
    dataset = load(put(tmp_path, *pictures("cat", "dog"), *names))
    (finding,) = dataset.findings
    assert (finding.group, finding.kind, finding.count) == ("passed over", kind, len(names))
    assert finding.sentence == sentence
    assert finding.example in finding.sentence
    assert dataset.remarks[-1].startswith(f"passed over {sentence}")


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (["cat/a.txt"], ""),
        (["cat/a.heic"], "if they are pictures, convert them to JPEG or PNG"),
        (["cat/a"], "if they are pictures, give them endings such as .jpg or .png"),
        (
            ["cat/a", "cat/b.CR2"],
            "if they are pictures, convert them to JPEG or PNG or give them endings such as .jpg or .png",
        ),
    ],
)
def test_other_endings_have_a_way_out(tmp_path: Path, names: list[str], remedy: str) -> None:
    assert only(load(put(tmp_path, *pictures("cat", "dog"), *names)), "other endings").remedy == remedy


def test_linked_folders_that_are_not_followed(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cat", "dog"))
    (tmp_path / "cat" / "more").symlink_to("../dog")
    finding = only(load(tmp_path), "linked")
    assert finding.sentence == "1 linked folder: cat/more"
    assert finding.remedy.startswith("links to folders are followed for splits and classes only")


def test_pictures_outside_of_split_folders(tmp_path: Path) -> None:
    dataset = load(put(tmp_path, *pictures("train/cat", "train/dog"), "sample.png", "other.png"))
    (finding,) = dataset.findings
    assert (finding.kind, finding.sentence) == (
        "loose pictures",
        "2 pictures outside of the split folders, such as other.png",
    )


def test_an_empty_split_folder(tmp_path: Path) -> None:
    (put(tmp_path, *pictures("train/cat", "train/dog")) / "test").mkdir()
    assert only(load(tmp_path), "no pictures").sentence == "1 folder without pictures: test/"


def test_an_empty_folder_that_is_called_like_a_split_is_counted_once(tmp_path: Path) -> None:
    (put(tmp_path, *pictures("cat", "dog")) / "train").mkdir()
    assert [finding.sentence for finding in load(tmp_path).findings] == ["1 folder without pictures: train/"]


def test_classes_of_few_images(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cat", "val/cat", "test/cat", "val/dog", "test/dog"))
    finding = only(load(put(tmp_path, *pictures("train/dog", count=FEW_IMAGES - 1))), "few images")
    assert finding.sentence == "1 class with fewer than 5 training images: 'dog' 4"
    assert (finding.group, finding.count, finding.example) == ("looks wrong", 1, "dog")
    put(tmp_path, f"train/dog/{FEW_IMAGES}.png")
    assert load(tmp_path).findings == ()


def test_few_images_are_counted_after_others_were_held_out_and_that_is_said(tmp_path: Path) -> None:
    finding = only(load(put(tmp_path, *pictures("cat", "dog", count=6))), "few images")
    assert finding.sentence == (
        "2 classes with fewer than 5 training images, after validation and test images were held out, such as"
        " 'cat' 4, 'dog' 4"
    )


def test_a_class_that_loses_a_large_part_to_other_endings(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cat", "dog", "eel"), *(f"cat/m{i}.heic" for i in range(6)), "dog/x.heic")
    finding = only(load(tmp_path), "lost to endings")
    assert (finding.group, finding.count, finding.example) == ("looks wrong", 1, "cat")
    assert finding.sentence == "1 class of which a large part has endings that are not read: 'cat' 6 of 16 (.heic)"
    put(tmp_path, *(f"eel/{i:02}" for i in range(10, 20)))
    finding = only(load(tmp_path), "lost to endings")
    assert finding.sentence == (
        "2 classes of which a large part has endings that are not read, such as 'cat' 6 of 16 (.heic),"
        " 'eel' 10 of 20 (without ending)"
    )


def test_files_that_accompany_a_picture_are_no_loss(tmp_path: Path) -> None:
    """Labels for detection, a phone's HEIC beside its JPEG, an archive's description of each picture."""
    put(
        tmp_path, *pictures("cat", "dog"), *(f"cat/{i}.{end}" for i in range(10) for end in ("txt", "heic", "png.json"))
    )
    assert {finding.kind for finding in load(tmp_path).findings} == {"other endings"}


def test_the_loss_of_flat_files_is_counted_by_their_labels(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{label}_{i}.png" for label in (0, 1) for i in range(10)))
    put(tmp_path, *(f"train/1_m{i}.avif" for i in range(4)), "train/x.avif")
    assert only(load(tmp_path), "lost to endings").sentence.endswith(": '1' 4 of 14 (.avif)")


def test_a_folder_too_deep(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/cat", "train/dog", "val/cat", "val/dog"))
    finding = only(load(tmp_path / "train"), "too deep")
    assert finding.sentence == "train/ is one of several split folders, and the others are not read"
    assert finding.remedy == f"did you mean {tmp_path}?"


def test_a_folder_too_high(tmp_path: Path) -> None:
    put(tmp_path, *pictures(*(f"{a}/{b}/{c}" for a in "ab" for b in ("train", "test") for c in ("cat", "dog"))))
    finding = only(load(tmp_path), "too high")
    assert finding.sentence == "2 class folders with split folders inside, whose division is not used, such as a/"
    assert finding.remedy == f"did you mean {tmp_path / 'a'}?"


def test_classes_that_hold_splits(tmp_path: Path) -> None:
    put(tmp_path, *pictures("cat/train", "cat/test", "dog/train", "dog/test"))
    assert only(load(tmp_path), "too high").remedy == "to use it, put class folders into train/, val/ and test/"


def test_classes_of_almost_the_same_name(tmp_path: Path) -> None:
    finding = only(load(put(tmp_path, *pictures("Cat", "cat", "dog"))), "alike names")
    assert finding.sentence == "1 group of classes with almost the same name: 'Cat' and 'cat'"


@pytest.mark.parametrize("names", [("fold1", "fold2", "fold3"), ("dev", "holdout"), ("colour", "grey"), ("a", "b")])
def test_class_folders_with_the_same_folders_inside_look_wrong(tmp_path: Path, names: tuple[str, ...]) -> None:
    put(tmp_path, *pictures(*(f"{name}/{label}" for name in names for label in ("cat", "dog"))))
    finding = only(load(tmp_path), "same folders")
    assert (finding.group, finding.count, finding.example) == ("looks wrong", len(names), f"{names[0]}/")
    assert finding.remedy.startswith(
        "if these are splits of the classes 'cat', 'dog', call them train/, val/ and test/;"
    )
    settled = load_dataset(DataRecipe(source=str(tmp_path), layout="classes"))
    assert settled.findings == ()


def test_folders_that_are_taken_for_splits_are_said(tmp_path: Path) -> None:
    put(tmp_path, *pictures(*(f"{name}/{label}" for name in ("training_set", "test_set") for label in ("cat", "dog"))))
    dataset = load(tmp_path)
    assert dataset.layout == "split folders training_set, test_set"
    finding = only(dataset, "split names")
    assert finding.sentence == (
        "2 folders taken for splits by their names, such as test_set/ for test, training_set/ for train"
    )
    assert any(remark.startswith("warning: 2 folders taken for splits") for remark in dataset.remarks)


@pytest.mark.parametrize("names", [("cat", "dog", "test1"), ("cat", "train_images"), ("dev", "dog")])
def test_a_class_that_is_called_like_a_split_looks_wrong(tmp_path: Path, names: tuple[str, ...]) -> None:
    finding = only(load(put(tmp_path, *pictures(*names))), "split names")
    assert finding.count == 1
    assert finding.remedy.startswith("if they are splits, call them train/, val/ and test/, with class folders in each")


def test_folders_inside_of_class_folders_are_said(tmp_path: Path) -> None:
    put(tmp_path, *pictures("animal/cat", "animal/dog", "vehicle/car"))
    finding = only(load(tmp_path), "folders inside")
    assert finding.sentence == "1 class folder with folders inside, all of one class: animal/"
    assert load(put(tmp_path / "one", *pictures("animal/a/b", "vehicle/c"))).findings == ()


def test_a_set_for_detection_is_named(tmp_path: Path) -> None:
    put(tmp_path, *pictures("train/images", "valid/images"), "train/labels/0.txt", "valid/labels/0.txt")
    with pytest.raises(
        DataError, match=r"images/ and labels/ are of a data set for detection, where folders are no cl"
    ):
        load(tmp_path)


def test_a_folder_is_not_meant_that_would_be_refused(tmp_path: Path) -> None:
    put(tmp_path, *pictures("images/train", "images/val"))
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert "did you mean" not in str(caught.value)
    put(tmp_path / "b", *pictures(*(f"images/{a}/{b}" for a in ("train", "val") for b in ("cat", "dog"))))
    with pytest.raises(DataError, match=r"did you mean .*images\? a classifier needs"):
        load(tmp_path / "b")


@pytest.mark.parametrize("name", ["\u202ertl", "a\u200bb"])
def test_a_class_that_nobody_can_read_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path, *pictures("cat", name))
    with pytest.raises(DataError, match="has a name that is not one line of visible UTF-8 text; rename it"):
        load(tmp_path)
    put(tmp_path / "b", *pictures("0", "1"))
    (tmp_path / "b" / "classes.txt").write_text(f"cat\n{name}\n", encoding="utf-8")
    with pytest.raises(DataError, match="which is not visible text; take out what cannot be seen in it"):
        load(tmp_path / "b")


def test_a_class_that_differs_in_a_joiner_only(tmp_path: Path) -> None:
    assert only(load(put(tmp_path, *pictures("ab", "a\u200cb"))), "alike names").count == 1


@pytest.mark.parametrize("name", ["a{s}", "b{es}", "{0}"])
def test_braces_of_a_name_stay(tmp_path: Path, name: str) -> None:
    put(tmp_path / "b", *pictures(name, "dog"), f"{name}/x.txt")
    assert f"{name}/x.txt" in only(load(tmp_path / "b"), "other endings").sentence
