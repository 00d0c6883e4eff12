"""Split folders or class folders: the structure decides, or the user is asked. No image is needed for that."""

from pathlib import Path

import pytest

from toolkit.data.classes import read_class_list
from toolkit.data.folders import read_folder
from toolkit.data.layouts import Layout, find_above, read_layout, spelling_key
from toolkit.errors import DataError
from toolkit.settings import FolderLayout


def touch(root: Path, *folders: str, form: str = "{i}", count: int = 3) -> Path:
    """`count` picture files in each folder."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{form.format(i=i)}.png").touch()
    return root


def read(root: Path, setting: FolderLayout = "auto") -> Layout:
    top = read_folder(root)
    return read_layout(root, top, setting, read_class_list(root))


def classes_of(layout: Layout) -> list[str]:
    assert not layout.has_split_folders
    return list(dict.fromkeys(layout.parts["train"].keys))


@pytest.mark.parametrize(
    "folders",
    [
        ("bus", "car", "train"),
        ("bus", "car", "Train"),
        ("bus", "car", "TRAINING"),
        ("bus", "training"),
        ("invalid", "valid"),
        ("invalid", "Validation"),
        ("exam", "test"),
        ("bus", "car", "test", "train"),
        ("invalid", "train", "valid"),
    ],
)
def test_classes_may_be_called_like_splits(tmp_path: Path, folders: tuple[str, ...]) -> None:
    assert classes_of(read(touch(tmp_path, *folders))) == sorted(folders)


def test_a_class_called_train_may_hold_folders_and_pictures(tmp_path: Path) -> None:
    assert classes_of(read(touch(tmp_path, "bus", "train", "train/steam"))) == ["bus", "train"]


def test_frames_of_movies_are_no_labels(tmp_path: Path) -> None:
    """Names like 0_17.png in train/ could be a flat split, but one label, or labels with gaps, make no data set."""
    assert classes_of(read(touch(tmp_path / "one", "bus", "train", form="0_{i}"))) == ["bus", "train"]
    assert classes_of(read(touch(tmp_path / "gaps", "bus", "train", form="2{i}_0"))) == ["bus", "train"]


def two_readings(tmp_path: Path, name: str) -> Path:
    root = tmp_path / name
    if name == "same folders":
        return touch(root, "bus/day", "bus/night", "train/day", "train/night")
    if name == "some folders":
        return touch(root, "dev/cat", "dev/dog", "train/cat", "train/dog", "train/eel")
    if name == "one class with folders":
        return touch(root, "bus", "car", "train/electric", "train/steam")
    touch(root, "bus", "car")
    for label in range(2):
        touch(root, "train", form=f"{label}_{{i}}")
    return root


@pytest.mark.parametrize("name", ["same folders", "some folders", "one class with folders", "flat labels"])
def test_two_readings_are_both_named_with_the_way_to_choose(tmp_path: Path, name: str) -> None:
    root = two_readings(tmp_path, name)
    with pytest.raises(DataError) as caught:
        read(root)
    message = str(caught.value)
    assert message.startswith(f"{root} can be read in two ways: as split folders (train/, without ")
    assert "class folders (" in message
    assert message.endswith("; set data.layout to splits or to classes (--set data.layout=classes)")
    assert "train" in classes_of(read(root, "classes"))
    assert read(root, "splits").has_split_folders


@pytest.mark.parametrize(
    "folders",
    [
        ("cat", "dog", "test"),
        ("expired", "invalid", "valid"),
        ("cat", "dog", "test/cat", "test/dog"),
        ("stuff/cat", "stuff/dog", "test/cat", "test/dog"),
    ],
)
def test_two_readings_without_training_folder(tmp_path: Path, folders: tuple[str, ...]) -> None:
    root = touch(tmp_path, *folders)
    with pytest.raises(DataError) as caught:
        read(root)
    message = str(caught.value)
    assert message.startswith(f"{root} can be read in two ways: as ")
    assert "or as training images (" in message
    assert "set data.layout to classes (--set data.layout=classes), or move the training images' folders" in message
    assert len(classes_of(read(root, "classes"))) == len({folder.split("/")[0] for folder in folders})
    with pytest.raises(DataError, match="but no training images"):
        read(root, "splits")


def test_several_splits_beside_another_folder_are_splits(tmp_path: Path) -> None:
    layout = read(touch(tmp_path / "nested", "train/cat", "train/dog", "val/cat", "val/dog", "dev/cat", "dev/dog"))
    assert str(layout) == "split folders train, val"
    assert [folder.name for folder in layout.beside] == ["dev"]
    root = tmp_path / "flat"
    for label in range(2):
        touch(root, "training", "testing", form=f"{label}_{{i}}")
    layout = read(touch(root, "unlabelled"))
    assert str(layout) == "split folders training, testing of flat files"
    assert [folder.name for folder in layout.beside] == ["unlabelled"]


def test_one_split_beside_a_folder_of_another_structure_is_a_split(tmp_path: Path) -> None:
    layout = read(touch(tmp_path, "train/cat", "train/dog", "unlabelled"))
    assert str(layout) == "split folders train"
    assert [folder.name for folder in layout.beside] == ["unlabelled"]


def test_classes_txt_may_decide(tmp_path: Path) -> None:
    root = two_readings(tmp_path, "flat labels")
    (root / "classes.txt").write_text("train\ncar\nbus\n")
    assert set(classes_of(read(root))) == {"bus", "car", "train"}
    (root / "classes.txt").write_text("shirt\nshoe\n")
    assert str(read(root)) == "split folders train of flat files"


@pytest.mark.parametrize("setting", ["auto", "splits", "classes"])
def test_words_for_what_is_clear(tmp_path: Path, setting: FolderLayout) -> None:
    assert str(read(touch(tmp_path / "flat", "", form="0_{i}"), "classes")) == "flat files"
    if setting != "splits":
        assert str(read(touch(tmp_path / "classes", "cat", "dog"), setting)) == "class folders"
    if setting != "classes":
        names = ("Train/cat", "Train/dog", "val/cat", "val/dog", "Test/cat", "Test/dog")
        assert str(read(touch(tmp_path / "splits", *names), setting)) == "split folders Train, val, Test"


def test_split_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no split folders; add a folder train/, or set data.layout to auto"):
        read(touch(tmp_path, "cat", "dog"), "splits")


def test_splits_without_training_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has test/, val/ but no training images; add a folder train/ .* classes"):
        read(touch(tmp_path, "val/cat", "val/dog", "test/cat", "test/dog"))


@pytest.mark.parametrize("folder", ["test", "test/unknown", "test/images/all"])
def test_a_test_split_without_labels_is_set_apart(tmp_path: Path, folder: str) -> None:
    layout = read(touch(tmp_path, "train/cat", "train/dog", folder))
    assert str(layout) == "split folders train"
    assert [folder.name for folder in layout.unlabelled] == ["test"]


def test_flat_splits_without_labels_are_set_apart(tmp_path: Path) -> None:
    for label in range(2):
        touch(tmp_path, "train", form=f"{label}_{{i}}")
    layout = read(touch(tmp_path, "test", "val"))
    assert [folder.name for folder in layout.unlabelled] == ["test", "val"]


def test_some_names_without_label_are_a_mistake_not_a_split_without_labels(tmp_path: Path) -> None:
    for label in range(2):
        touch(tmp_path, "train", "test", form=f"{label}_{{i}}")
    touch(tmp_path, "test", count=1)
    with pytest.raises(DataError, match=r"test/0\.png does not begin with a label"):
        read(tmp_path)


def test_a_split_that_is_empty_is_set_apart(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat", "train/dog")
    touch(tmp_path, "test", "val/cat", count=0)
    layout = read(tmp_path)
    assert str(layout) == "split folders train"
    assert [folder.name for folder in layout.empty] == ["test", "val"]
    touch(tmp_path / "b", "cat", "dog")
    touch(tmp_path / "b", "train", count=0)
    assert classes_of(read(tmp_path / "b")) == ["cat", "dog"], "an empty folder is no split"


def test_a_folder_of_one_class_suggests_the_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "cat", "dog")
    with pytest.raises(DataError, match=rf"does not begin with a label.*; did you mean {tmp_path}\? rename"):
        read(tmp_path / "cat")
    monkeypatch.chdir(tmp_path / "cat")
    with pytest.raises(DataError, match=rf"; did you mean {tmp_path}\? rename"):
        read(Path())


def test_find_above(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat", "valid/cat", "test/cat")
    assert find_above(tmp_path / "train") == tmp_path
    assert find_above(tmp_path / "train" / "cat") is None
    touch(tmp_path / "alone", "train/cat", "training/cat")
    assert find_above(tmp_path / "alone" / "train") is None


@pytest.mark.parametrize("other", ["CATS", "cats", " Cats", "Cats "])
def test_spelling_does_not_count(other: str) -> None:
    assert spelling_key(other) == spelling_key("Cats") != spelling_key("Cat s")


def test_accents_are_the_same_however_they_are_encoded() -> None:
    assert spelling_key("caf\u00e9") == spelling_key("CAFE\u0301") != spelling_key("cafe")


# --- splits of other names ------------------------------------------------------------------------------------------

PAIRS = [
    ("training_set", "test_set"),
    ("train_images", "val_images"),
    ("seg_train", "seg_test"),
    ("birds-train", "birds-test"),
    ("TrainSet", "ValSet"),
    ("train1", "test1"),
    ("train", "test1"),
    ("train", "valid_images"),
    ("Training Images", "Test Images"),
]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("names", PAIRS)
def test_splits_may_have_other_names(tmp_path: Path, names: tuple[str, str], wrapped: bool) -> None:
    for name in names:
        above = f"{name}/{name}" if wrapped else name
        touch(tmp_path, f"{above}/cat", f"{above}/dog")
    layout = read(tmp_path)
    assert [*layout.parts] == ["train", "valid" if "al" in names[1] else "test"]
    assert set(layout.parts["train"].keys) == {"cat", "dog"}
    assert {folder.name for folder in layout.renamed} == {*names} - {"train"}
    assert len(classes_of(read(tmp_path, "classes"))) == 2
    assert read(tmp_path, "classes").is_settled


def test_an_archive_that_repeats_the_name_of_a_split(tmp_path: Path) -> None:
    layout = read(touch(tmp_path, "train/train/cat", "train/train/dog", "val/val/cat", "val/val/dog"))
    assert str(layout) == "split folders train, val"
    assert set(layout.parts["valid"].keys) == {"cat", "dog"}


def test_flat_files_in_splits_of_other_names(tmp_path: Path) -> None:
    for label in range(2):
        touch(tmp_path, "training_set", "test_set", form=f"{label}_{{i}}")
    assert str(read(tmp_path)) == "split folders training_set, test_set of flat files"


def test_pictures_to_predict_beside_splits_of_other_names(tmp_path: Path) -> None:
    names = [f"seg_{split}/seg_{split}/{name}" for split in ("train", "test") for name in ("sea", "wood")]
    layout = read(touch(tmp_path, *names, "seg_pred/seg_pred"))
    assert str(layout) == "split folders seg_train, seg_test"
    assert [folder.name for folder in layout.beside] == ["seg_pred"]
    layout = read(touch(tmp_path / "b", "train_images/cat", "train_images/dog", "test_images"))
    assert [folder.name for folder in layout.unlabelled] == ["test_images"]


def test_files_as_competitions_name_them_are_no_class_called_train(tmp_path: Path) -> None:
    touch(touch(tmp_path, "train", form="cat.{i}"), "train", form="dog.{i}")
    touch(tmp_path, "test1")
    with pytest.raises(DataError, match=r"train/cat.0.png does not begin with a label") as caught:
        read(tmp_path)
    assert "'cat' and 'dog' may be classes: rename it, or put the images of each class into a folder" in str(
        caught.value
    )
    assert str(caught.value).endswith("or set data.layout to classes if train/ is one")
    assert classes_of(read(tmp_path, "classes")) == ["test1", "train"]


@pytest.mark.parametrize(
    "folders",
    [
        ("bullet_train", "crash_test"),
        ("train_station", "test_tube"),
        ("bus", "car", "test1"),
        ("bus", "train_images"),
        ("dev/cat", "dev/dog", "holdout/cat", "holdout/dog"),
        ("training_set/cat", "other/dog"),
    ],
)
def test_classes_may_sound_like_splits(tmp_path: Path, folders: tuple[str, ...]) -> None:
    assert classes_of(read(touch(tmp_path, *folders))) == sorted({folder.split("/")[0] for folder in folders})


def test_classes_txt_makes_them_classes(tmp_path: Path) -> None:
    root = touch(tmp_path, "training_set/cat", "training_set/dog", "test_set/cat", "test_set/dog")
    (root / "classes.txt").write_text("training_set\ntest_set\n")
    assert set(classes_of(read(root))) == {"training_set", "test_set"}
    assert read(root).is_settled


def test_two_folders_for_one_split_of_other_names(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"{name}/{label}" for name in ("train1", "train2", "test1") for label in ("cat", "dog")))
    with pytest.raises(DataError, match=r"has both train1/ and train2/ for the same split; keep one of them, or set"):
        read(root)


def test_a_plain_name_goes_before_another(tmp_path: Path) -> None:
    layout = read(touch(tmp_path, *(f"{name}/{label}" for name in ("train", "test", "test1") for label in ("a", "b"))))
    assert str(layout) == "split folders train, test"
    assert [folder.name for folder in layout.beside] == ["test1"]
