"""Directories of images: every layout, every mistake."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image, shared
from PIL import Image

from toolkit.data.sources import Dataset, load_dataset
from toolkit.errors import DataError
from toolkit.settings import DataRecipe


def load(root: Path, **settings: object) -> Dataset:
    return load_dataset(DataRecipe(source=str(root), **settings))


def put(root: Path, *names: str) -> Path:
    """A small image at each name; no two are the same picture."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(0, seed=seed, size=(6, 5)).save(path)
    return root


def flat(root: Path, *splits: str, labels: int = 2) -> Path:
    return put(root, *(f"{split}/{label}_{i}.png" for split in splits for label in range(labels) for i in range(4)))


def expect_error(root: Path, *parts: str, **settings: object) -> None:
    with pytest.raises(DataError) as caught:
        load(root, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize("test_folder", ["testing", "evaluation", "Test", "eval"])
def test_flat_layout(tmp_path: Path, test_folder: str) -> None:
    dataset = load(flat(tmp_path / "set", "training", "validation", test_folder))
    assert dataset.name == "set"
    assert dataset.classes == ("0", "1")
    assert dataset.train.names == tuple(f"training/{label}_{i}.png" for label in (0, 1) for i in range(4))
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4
    assert dataset.train.labels.dtype == np.int64
    assert dataset.test.names[0] == f"{test_folder}/0_0.png"
    assert dataset.notes == ()
    assert dataset.train.read(3).size == (6, 5)


@pytest.mark.parametrize(
    "folders", [("train", "val", "test"), ("training", "validation", "testing"), ("TRAIN", "Valid", "Evaluation")]
)
def test_class_folders_in_splits(tmp_path: Path, folders: tuple[str, str, str]) -> None:
    put(tmp_path, *(f"{folder}/{name}/{i}.png" for folder in folders for name in ("dog", "cat") for i in range(2)))
    dataset = load(tmp_path)
    assert dataset.classes == ("cat", "dog")
    for folder, images in zip(folders, dataset.splits.values(), strict=True):
        assert images.names == tuple(f"{folder}/{name}/{i}.png" for name in ("cat", "dog") for i in range(2))
        assert images.labels.tolist() == [0, 0, 1, 1]


def test_class_folders_without_splits_are_split_by_seed(tmp_path: Path) -> None:
    names = [f"{name}/{i}.png" for name, count in (("a", 20), ("b", 10)) for i in range(count)]
    put(tmp_path, *names)
    dataset = load(tmp_path, test_fraction=0.2, validation_fraction=0.25, split_seed=3)
    counts = {split: Counter(images.labels.tolist()) for split, images in dataset.splits.items()}
    assert counts == {"train": {0: 12, 1: 6}, "valid": {0: 4, 1: 2}, "test": {0: 4, 1: 2}}
    drawn = [name for images in dataset.splits.values() for name in images.names]
    assert sorted(drawn) == sorted(names)
    assert dataset.notes == (
        "test: 6 of 30 images, held out at random, the same share of each class (split_seed 3)",
        "validation: 6 of 24 training images, held out at random, the same share of each class (split_seed 3)",
    )
    again, other = (load(tmp_path, test_fraction=0.2, validation_fraction=0.25, split_seed=seed) for seed in (3, 4))
    assert again.test.names == dataset.test.names
    assert other.test.names != dataset.test.names
    assert other.sha256 == dataset.sha256


def test_missing_validation_comes_from_train_and_test_stays(tmp_path: Path) -> None:
    dataset = load(flat(tmp_path, "training", "testing"), validation_fraction=0.25)
    assert len(dataset.test) == 8
    assert all(name.startswith("testing/") for name in dataset.test.names)
    assert all(name.startswith("training/") for name in (*dataset.train.names, *dataset.valid.names))
    assert len(dataset.valid) == 2
    assert dataset.notes[0].startswith("validation: 2 of 8 training images")


def test_missing_test_comes_from_train_not_from_validation(tmp_path: Path) -> None:
    dataset = load(flat(tmp_path, "train", "val"), test_fraction=0.25)
    assert len(dataset.valid) == 8
    assert all(name.startswith("val/") for name in dataset.valid.names)
    assert all(name.startswith("train/") for name in dataset.test.names)
    assert not set(dataset.test.names) & set(dataset.train.names)
    assert dataset.notes[0].startswith("test: 2 of 8 training images")


def test_every_extension_in_any_case_counts_and_the_rest_is_passed_over(tmp_path: Path) -> None:
    endings = ("jpg", "JPEG", "Png", "webp", "BMP", "jfif", "JPE", "gif", "tif", "TIFF", "pgm", "ppm", "dib")
    put(tmp_path, *(f"a/{i}.{suffix}" for i, suffix in enumerate(endings)))
    put(tmp_path, *(f"b/deep/er/{i}.png" for i in range(5)))
    for name in ("a/notes.txt", "a/.hidden.png", "b/._0.png", "Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    put(tmp_path, "b/.thumbnails/0.png")
    dataset = load(tmp_path)
    assert sum(len(images) for images in dataset.splits.values()) == len(endings) + 5
    assert {finding.kind: finding.count for finding in dataset.findings} == {
        "hidden": 4,
        "system": 1,
        "other endings": 1,
        "few images": 1,
    }
    assert all(images.read(i) for images in dataset.splits.values() for i in range(len(images)))


def test_other_folders_beside_the_splits_are_noted(tmp_path: Path) -> None:
    put(flat(tmp_path, "training", "validation", "testing"), "unlabelled/x.png")
    dataset = load(tmp_path)
    assert dataset.layout == "split folders training, validation, testing of flat files"
    assert dataset.notes == ()
    assert dataset.remarks[0] == (
        "passed over 1 folder of pictures beside the split folders: unlabelled/; if these and the split folders are"
        " classes, set data.layout to classes"
    )


def test_classes_txt_names_flat_labels(tmp_path: Path) -> None:
    flat(tmp_path, "training", "testing")
    (tmp_path / "classes.txt").write_text("\ufeffapple pie\r\nsoup \n\n", encoding="utf-8")
    assert load(tmp_path).classes == ("apple pie", "soup")


def test_classes_txt_orders_class_folders(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{i}.png" for name in ("a", "b", "c") for i in range(4)))
    (tmp_path / "classes.txt").write_text("c\na\nb\n")
    dataset = load(tmp_path)
    assert dataset.classes == ("c", "a", "b")
    assert {
        (name[0], label) for name, label in zip(dataset.train.names, dataset.train.labels.tolist(), strict=True)
    } == {
        ("a", 1),
        ("b", 2),
        ("c", 0),
    }


def test_classes_txt_names_numbered_folders(tmp_path: Path) -> None:
    put(tmp_path, *(f"{label}/{i}.png" for label in range(11) for i in range(3)))
    assert load(tmp_path).classes[:4] == ("0", "1", "10", "2"), "as torchvision's ImageFolder sorts"
    (tmp_path / "classes.txt").write_text("\n".join(f"class {label}" for label in range(11)))
    dataset = load(tmp_path)
    assert dataset.classes[10] == "class 10"
    assert {
        label for name, label in zip(dataset.train.names, dataset.train.labels, strict=True) if name[:3] == "10/"
    } == {10}


def test_fingerprint_is_of_the_content_alone(tmp_path: Path) -> None:
    root = flat(tmp_path / "one", "training", "testing")
    before = load(root).sha256
    shutil.copytree(root, tmp_path / "far" / "away")
    assert load(tmp_path / "far" / "away").sha256 == before
    (root / "training" / "0_0.png").write_bytes((root / "training" / "1_1.png").read_bytes())
    changed = load(root).sha256
    assert changed != before
    (root / "training" / "0_0.png").rename(root / "training" / "0_00.png")
    assert load(root).sha256 not in (before, changed)


def test_food10_is_read_as_its_readme_says() -> None:
    dataset = load(shared("data", "food10"))
    assert {split: len(images) for split, images in dataset.splits.items()} == {
        "train": 3000,
        "valid": 750,
        "test": 1250,
    }
    assert dataset.classes[:2] == ("apple_pie", "baby_back_ribs")
    assert np.bincount(dataset.test.labels).tolist() == [125] * 10


# --- mistakes, one line each -----------------------------------------------------------------------------------------


def test_a_missing_folder(tmp_path: Path) -> None:
    expect_error(
        tmp_path / "nowhere",
        "nowhere' is not an existing folder and not the name of a data set",
        "fashion-mnist, cifar10",
    )


def test_an_empty_folder(tmp_path: Path) -> None:
    expect_error(tmp_path, f"there are no images in {tmp_path}", "train/daisy/17.jpg")
    (tmp_path / "notes.txt").write_text("x")
    expect_error(
        tmp_path, "there are no images in", "only files with endings that are not read (1 .txt); use files like"
    )
    (tmp_path / "IMG_1.HEIC").touch()
    expect_error(tmp_path, "not read (1 .heic, 1 .txt); convert them to JPEG or PNG")
    (tmp_path / "train").mkdir()
    expect_error(tmp_path, f"there are no images in {tmp_path / 'train'}")


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"x")
    expect_error(tmp_path / "x.zip", "x.zip is a file, not a folder of images")


def test_one_class_only(tmp_path: Path) -> None:
    expect_error(
        put(tmp_path / "a", "train/cat/1.png", "train/cat/2.png"), "has one class only ('cat')", "at least two"
    )
    expect_error(put(tmp_path / "b", "train/0_1.png", "train/0_2.png"), "has one class only ('0')")


def kinds(dataset: Dataset) -> set[str]:
    return {finding.kind for finding in dataset.findings}


@pytest.mark.parametrize("leaves", ["nothing", "an empty folder", "a hidden file"])
def test_a_split_may_lack_a_class(tmp_path: Path, leaves: str) -> None:
    """Its classes are those of the training images; others count as having no images there."""
    put(tmp_path, *(f"train/{name}/{i}.png" for name in ("cat", "dog", "eel") for i in range(5)))
    put(tmp_path, *(f"{split}/{name}/1.png" for split in ("val", "test") for name in ("cat", "dog", "eel")))
    for place in ("val/cat", "test/cat", "test/eel"):
        (tmp_path / place / "1.png").unlink()
        if leaves == "nothing":
            (tmp_path / place).rmdir()
        elif leaves == "a hidden file":
            (tmp_path / place / ".DS_Store").touch()
    dataset = load(tmp_path)
    assert dataset.classes == ("cat", "dog", "eel")
    assert dataset.valid.labels.tolist() == [1, 2]
    assert dataset.test.labels.tolist() == [1]
    assert [remark for remark in dataset.remarks if "warning" in remark] == [
        "warning: 1 class without validation images: 'cat'; add some: accuracy there says nothing of such a class",
        "warning: 2 classes without test images, such as 'cat', 'eel'; add some: accuracy there says nothing of such a"
        " class",
    ]


def test_a_flat_split_may_lack_a_class(tmp_path: Path) -> None:
    flat(tmp_path, "training", "testing", labels=3)
    for path in (tmp_path / "testing").glob("2_*"):
        path.unlink()
    dataset = load(tmp_path)
    assert dataset.classes == ("0", "1", "2")
    assert dataset.test.labels.tolist() == [0] * 4 + [1] * 4
    assert "no test images" in kinds(dataset)


def test_an_empty_folder_beside_the_class_folders_is_no_class(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(8)))
    (tmp_path / "eel").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "0.xml").touch()
    dataset = load(tmp_path)
    assert dataset.classes == ("cat", "dog")
    (finding,) = dataset.findings
    assert (finding.group, finding.kind, finding.count) == ("passed over", "no pictures", 2)
    assert finding.sentence == "2 folders without pictures, such as annotations/"


@pytest.mark.parametrize(("ending", "way_out"), [(".heic", "convert them to JPEG or PNG"), ("", "give them endings")])
def test_a_class_folder_of_pictures_that_are_not_read_is_refused(tmp_path: Path, ending: str, way_out: str) -> None:
    put(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(4)))
    (tmp_path / "eel").mkdir()
    for i in range(3):
        (tmp_path / "eel" / f"{i}{ending}").write_bytes(b"x")
    problem = f"the folder {tmp_path / 'eel'} has 3 files, but none that is read (3 {ending or 'without ending'})"
    expect_error(tmp_path, problem, way_out, "JPEG, PNG, WebP, BMP, GIF, TIFF or PPM files are read")


def test_a_split_folder_of_pictures_that_are_not_read_is_refused(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)))
    (tmp_path / "test" / "cat").mkdir(parents=True)
    (tmp_path / "test" / "cat" / "0.avif").touch()
    expect_error(tmp_path, f"the folder {tmp_path / 'test'} has 1 file, but none that is read (1 .avif); convert")


def test_a_test_folder_without_labels_leaves_the_test_images_to_be_held_out(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(10)))
    put(tmp_path, *(f"test/{i}.png" for i in range(8)))
    dataset = load(tmp_path)
    assert [len(images) for images in dataset.splits.values()] == [14, 2, 4]
    assert not any(name.startswith("test/") for images in dataset.splits.values() for name in images.names)
    assert dataset.remarks[0].startswith("test: 4 of 20 images, held out at random")
    assert dataset.remarks[2] == (
        "passed over 8 pictures without labels in test/, such as test/0.png; images for that split are held out of the"
        " training images; to use these, sort them into class folders"
    )


def test_class_folders_are_matched_across_splits_if_only_the_spelling_differs(tmp_path: Path) -> None:
    """Capitals as by hand, decomposed accents as from a Mac's archive, a space that a Windows tool took away."""
    for split, names in {
        "train": ("Cats", "caf\u00e9", "red fox "),
        "val": ("cats", "cafe\u0301", "red fox"),
        "test": ("CATS", "caf\u00e9", "Red Fox"),
    }.items():
        put(tmp_path, *(f"{split}/{name}/{i}.png" for name in names for i in range(5)))
    dataset = load(tmp_path)
    assert dataset.classes == ("Cats", "caf\u00e9", "red fox ")
    labels = {name.split("/")[1]: label for name, label in zip(dataset.valid.names, dataset.valid.labels, strict=True)}
    assert labels == {"cats": 0, "cafe\u0301": 1, "red fox": 2}
    assert np.bincount(dataset.test.labels).tolist() == [5, 5, 5]
    (finding,) = dataset.findings
    assert (finding.group, finding.kind, finding.count) == ("looks wrong", "spelling", 5)
    assert "val/cafe\u0301, taken for 'caf\u00e9': accents are encoded differently" in finding.sentence


def test_classes_txt_may_spell_class_folders_differently(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{i}.png" for name in ("Cat", "cafe\u0301") for i in range(4)))
    (tmp_path / "classes.txt").write_text("caf\u00e9\ncat\n", encoding="utf-8")
    dataset = load(tmp_path)
    assert dataset.classes == ("caf\u00e9", "cat")
    assert {label for name, label in zip(dataset.train.names, dataset.train.labels, strict=True) if name[0] == "C"} == {
        1
    }


def test_a_spelling_that_fits_two_classes_is_refused(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{name}/{i}.png" for name in ("Cats", "cats") for i in range(4)))
    put(tmp_path, "val/CATS/0.png", "val/cats/1.png")
    expect_error(tmp_path, f"'CATS' is in {tmp_path / 'val'} but not in {tmp_path / 'train'}", "did you mean")


def test_names_of_files_may_be_anything_the_system_takes(tmp_path: Path) -> None:
    names = ["caf\udce9.png", "line\nbreak.png", "l" * 251 + ".png", "[bold].png", "-.png", "\u202e.png"]
    put(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(8)))
    for seed, name in enumerate(names):
        make_image(0, seed=100 + seed, size=(6, 5)).save(os.fsencode(tmp_path / "cat" / "x.png"))
        (tmp_path / "cat" / "x.png").rename(tmp_path / "cat" / name)
    dataset = load(tmp_path)
    shown = [name for images in dataset.splits.values() for name in images.names]
    assert len(shown) == len({*shown}) == 22
    assert {"cat/caf\\xe9.png", "cat/line\\nbreak.png"} <= {*shown}
    assert all("".join(name.splitlines()) == name for name in shown)
    assert "\n".join(shown).encode().decode().splitlines() == shown
    for images in dataset.splits.values():
        assert all(images.read(i).size == (6, 5) for i in range(len(images)))


@pytest.mark.parametrize(("name", "shown"), [("c\udce9t", "c\\xe9t"), ("c\nt", "c\\nt")])
def test_names_of_classes_are_text(tmp_path: Path, name: str, shown: str) -> None:
    put(tmp_path, *(f"dog/{i}.png" for i in range(4)))
    put(tmp_path, *(f"x/{i}.png" for i in range(4)))
    (tmp_path / "x").rename(tmp_path / name)
    expect_error(
        tmp_path,
        f"the class folder {tmp_path}/{shown} has a name that is not one line of visible UTF-8 text; rename it",
    )


def test_one_class_only_suggests_where_the_classes_are(tmp_path: Path) -> None:
    names = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]
    put(tmp_path / "a", *(f"archive/images/{name}" for name in names))
    expect_error(tmp_path / "a", f"one class only ('archive'); did you mean {tmp_path / 'a' / 'archive' / 'images'}? a")
    put(tmp_path / "b", *(f"set/{split}/{name}" for split in ("train", "val") for name in names))
    expect_error(tmp_path / "b", f"one class only ('set'); did you mean {tmp_path / 'b' / 'set'}? a")
    put(tmp_path / "c", *(f"{split}/images/{name}" for split in ("train", "val") for name in names))
    train = tmp_path / "c" / "train"
    expect_error(tmp_path / "c", f"if the folders in {train / 'images'} are the classes, move them to {train}: a")


def test_an_empty_flat_class(tmp_path: Path) -> None:
    flat(tmp_path, "training", "validation", "testing")
    (tmp_path / "classes.txt").write_text("pie\nsoup\nstew\n")
    expect_error(tmp_path, f"class 'stew' (label 2) has no images in {tmp_path / 'training'}", "and of classes.txt")


def test_a_gap_in_flat_labels(tmp_path: Path) -> None:
    expect_error(
        put(tmp_path, "train/0_1.png", "train/1_1.png", "train/20240101_1.png"),
        "label 2 has no images",
        "labels go up to 20240101",
        "count from 0",
    )


@pytest.mark.parametrize("name", ["cat_1.png", "-1_1.png", "1.5_1.png", "7.png", "٣_1.png"])
def test_a_label_that_is_no_integer(tmp_path: Path, name: str) -> None:
    flat(tmp_path, "training")
    put(tmp_path, f"training/{name}")
    expect_error(tmp_path, f"{tmp_path / 'training' / name} does not begin with a label")


def test_labels_beyond_classes_txt(tmp_path: Path) -> None:
    flat(tmp_path, "training", "testing", labels=3)
    (tmp_path / "classes.txt").write_text("pie\nsoup\n")
    expect_error(tmp_path, "training/2_0.png has label 2, but classes.txt names 2 classes (0 to 1)")


def test_class_folders_that_differ_between_splits(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{name}/1.png" for name in ("cat", "dog", "fox")), "test/cat/1.png")
    put(tmp_path, "test/dog/1.png", "test/eel/1.png")
    expect_error(
        tmp_path, f"'eel' is in {tmp_path / 'test'} but not in {tmp_path / 'train'}", "add images of it to", "or take"
    )
    put(tmp_path, "test/foxes/1.png")
    expect_error(tmp_path, f"'eel', 'foxes' are in {tmp_path / 'test'} but not in")
    shutil.rmtree(tmp_path / "test" / "eel")
    expect_error(tmp_path, "'foxes' is in", "did you mean fox? add images of it to")
    (tmp_path / "train" / "foxes").mkdir()
    expect_error(tmp_path, f"'foxes' has images in {tmp_path / 'test'} but none in {tmp_path / 'train'}")


def test_layouts_that_are_mixed(tmp_path: Path) -> None:
    put(tmp_path / "a", "train/cat/1.png", "train/dog/1.png", "test/0_1.png", "test/1_1.png")
    expect_error(tmp_path / "a", "class folders in one split and flat files in another")
    put(tmp_path / "b", "train/cat/1.png", "train/dog/1.png", "train/stray.png")
    expect_error(tmp_path / "b", "class folders and images beside them (stray.png)")


def test_two_spellings_of_one_split(tmp_path: Path) -> None:
    expect_error(flat(tmp_path, "train", "val", "validation"), "both val/ and validation/ for the same split")


def test_no_training_split(tmp_path: Path) -> None:
    expect_error(flat(tmp_path, "val", "test"), "has test/, val/ but no training images")


def test_a_share_of_the_training_images_is_the_same_each_time_and_of_each_class(tmp_path: Path) -> None:
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        put(tmp_path, *(f"{split}/{name}/{i}.png" for name in ("a", "b") for i in range(count)))
    put(tmp_path, "train/c/only.png", "val/c/1.png", "test/c/1.png")
    whole, half = load(tmp_path), load(tmp_path, share=0.5)
    assert Counter(half.train.labels.tolist()) == {0: 4, 1: 4, 2: 1}
    assert list(half.train.names) == [name for name in whole.train.names if name in set(half.train.names)]
    assert load(tmp_path, share=0.5).train.names == half.train.names
    assert load(tmp_path, share=0.5, split_seed=1).train.names != half.train.names
    assert (half.valid.names, half.test.names, half.sha256) == (whole.valid.names, whole.test.names, whole.sha256)
    assert "train: 9 of 17 images, the same share of each class (data.share)" in half.notes


def test_classes_too_small_to_hold_out(tmp_path: Path) -> None:
    put(tmp_path, *(f"dog/{i}.png" for i in range(5)), *(f"newt/{i}.png" for i in range(2)))
    expect_error(
        tmp_path,
        f"{tmp_path}: class 'newt' has 2 images; 3 are needed, one each for training, validation and test",
        "; add images, leave out those classes, or give the data set train, val and test folders of its own",
    )
    put(tmp_path, "cat/1.png")
    expect_error(
        tmp_path,
        "2 classes have too few images: 'cat' (1), 'newt' (2); 3 are needed, one each for training, validation and",
    )


@pytest.mark.parametrize(
    ("given", "needed", "purposes"),
    [("val", 2, "training and test"), ("test", 2, "training and validation"), ("", 3, "training, validation and test")],
)
def test_what_a_class_needs_depends_on_the_splits_that_are_given(
    tmp_path: Path, given: str, needed: int, purposes: str
) -> None:
    put(tmp_path, *(f"train/dog/{i}.png" for i in range(5)), *(f"train/newt/{i}.png" for i in range(needed - 1)))
    if given:
        put(tmp_path, f"{given}/dog/1.png", f"{given}/newt/1.png")
    many = "1 image" if needed == 2 else "2 images"
    expect_error(tmp_path, f"class 'newt' has {many}; {needed} are needed, one each for {purposes}")
    put(tmp_path, "train/newt/more.png")
    assert [images.labels.tolist().count(1) for images in load(tmp_path).splits.values()] == [1, 1, 1]


def test_all_splits_given_need_one_training_image(tmp_path: Path) -> None:
    put(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "val", "test") for name in ("dog", "newt")))
    assert [len(images) for images in load(tmp_path).splits.values()] == [2, 2, 2]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a\nb\na\n", "names 'a' twice"),
        (b"\n \n", "is empty"),
        (b"\xff\xfea", "cannot read"),
        (b"a\nx\n", "'b' is in only one"),
    ],
)
def test_a_classes_txt_that_cannot_be_used(tmp_path: Path, content: bytes, problem: str) -> None:
    put(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "classes.txt").write_bytes(content)
    expect_error(tmp_path, "classes.txt", problem, "one ")


@pytest.mark.parametrize("locked", ["", "train", "train/dog"])
def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str) -> None:
    """The refusal is staged, because tests may run as root, whom permissions do not stop."""
    put(tmp_path, *(f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)))
    scandir = os.scandir

    def refuse(path: str | os.PathLike[str]) -> object:
        if Path(path) == tmp_path / locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    expect_error(tmp_path, f"cannot read the folder {tmp_path / locked}: Permission denied", "permission")


def test_a_link_to_a_class_folder_is_followed(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", *(f"{i}.png" for i in range(4)))
    put(tmp_path / "set", *(f"cat/{i}.png" for i in range(4)))
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere")
    dataset = load(tmp_path / "set")
    assert dataset.classes == ("cat", "dog")
    (finding,) = (finding for finding in dataset.findings if finding.kind == "followed link")
    assert (finding.group, finding.sentence) == ("read in a special way", "1 followed link to files or folders: dog")
    with Image.open(tmp_path / "set" / "dog" / "0.png") as image:
        assert image.size == (6, 5)
