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
