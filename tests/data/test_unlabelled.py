"""Folders of images without labels: what is read, what is refused, and which images are copies of labelled ones."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_class_folders, make_image
from data_samples import make_scene
from PIL import Image
from test_near_copies import CHANGES
from typer.testing import CliRunner
from unlabelled_samples import make_unlabelled

from toolkit.cli.app import app
from toolkit.data import unlabelled
from toolkit.data.check import check_dataset
from toolkit.data.near_copies import HASH_DISTANCE, hash_thumbnails, make_thumbnail
from toolkit.data.pixels import load_unlabelled_pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import load_dataset
from toolkit.data.unlabelled import CopyTable, Unlabelled, describe_use, find_copies, find_unlabelled
from toolkit.errors import DataError
from toolkit.settings import DataRecipe


def find(root: Path, *folders: Path) -> Unlabelled:
    recipe = DataRecipe(source=str(root), unlabelled=tuple(map(str, folders)))
    found = find_unlabelled(recipe, load_dataset(recipe))
    assert found is not None
    return found


def refuse(root: Path, *folders: Path | str) -> str:
    recipe = DataRecipe(source=str(root), unlabelled=tuple(map(str, folders)))
    with pytest.raises(DataError) as caught:
        find_unlabelled(recipe, load_dataset(recipe))
    return str(caught.value)


def test_all_images_at_any_depth_are_read_and_what_is_passed_over_is_counted(
    class_folders: Path, tmp_path: Path
) -> None:
    folder = make_unlabelled(tmp_path / "more", 5)
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    found = find(class_folders, folder)
    assert set(found.images.names) == {
        f"{folder}/{name}" for name in ("1.png", "2.png", "4.png", "deep/er/0.png", "deep/er/3.png")
    }
    assert found.images.labels.tolist() == [unlabelled.NO_LABEL] * 5
    assert found.images.read(0).size == (48, 40)
    assert [finding.kind for finding in found.findings] == ["hidden", "other endings"]
    assert any("notes.txt" in remark for remark in found.remarks)


def test_without_folders_there_is_nothing(class_folders: Path) -> None:
    recipe = DataRecipe(source=str(class_folders))
    assert find_unlabelled(recipe, load_dataset(recipe)) is None


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(class_folders: Path, tmp_path: Path) -> None:
    one, two = make_unlabelled(tmp_path / "one"), make_unlabelled(tmp_path / "two")
    first = find(class_folders, one)
    assert first.sha256 == find(class_folders, two).sha256
    make_image(1, seed=5).save(two / "1.png")
    assert first.sha256 != find(class_folders, two).sha256


@pytest.mark.parametrize(
    ("folder", "relation"), [("test", "is"), ("val", "is"), (".", "contains"), ("test/red", "lies in")]
)
def test_a_folder_of_held_out_images_is_refused(class_folders: Path, folder: str, relation: str) -> None:
    said = refuse(class_folders, class_folders / folder)
    words = "validation" if folder in ("val", ".") else "test"
    assert f"{relation} {class_folders}/{'val' if words == 'validation' else 'test'}, the {words} images" in said


def test_the_training_folder_is_not_refused(class_folders: Path) -> None:
    assert len(find(class_folders, class_folders / "train")) == 36


def test_a_link_to_a_held_out_folder_is_refused(class_folders: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(class_folders / "test")
    assert "is " in refuse(class_folders, tmp_path / "link")


def test_folders_that_cannot_be_used_are_refused_in_one_line(class_folders: Path, tmp_path: Path) -> None:
    folder = make_unlabelled(tmp_path / "more", 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("")
    file = folder / "1.png"
    assert "'nowhere' is not an existing folder" in refuse(class_folders, "nowhere")
    assert "is a file, not a folder" in refuse(class_folders, file)
    assert "there are no images in" in refuse(class_folders, tmp_path / "empty")
    assert "endings that are not read (1 .txt)" in refuse(class_folders, tmp_path / "words")
    assert "is named twice" in refuse(class_folders, folder, f"{folder}/")
    assert f"{folder}/deep lies in {folder}; name each folder once" in refuse(class_folders, folder, folder / "deep")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two classes of 14 photographs-like pictures in train, 5 in val and 5 in test."""
    numbers = iter(range(100))
    for split, count in (("train", 14), ("val", 5), ("test", 5)):
        for name in ("a", "b"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for _ in range(count):
                number = next(numbers)
                make_scene(number).save(folder / f"{number}.png")
    return tmp_path / "set"


def add_copies(root: Path, folder: Path) -> Path:
    """Three new pictures, and copies: of a test image exact and near, near of a validation image, exact of training."""
    folder.mkdir()
    for number in range(3):
        make_scene(500 + number).save(folder / f"new{number}.png")
    with Image.open(root / "test" / "a" / "38.png") as image:
        image.save(folder / "exact.bmp")
    with Image.open(root / "test" / "a" / "39.png") as image:
        image.save(folder / "near.jpg", quality=40)
    with Image.open(root / "val" / "b" / "33.png") as image:
        image.resize((60, 45)).save(folder / "small.png")
    with Image.open(root / "train" / "a" / "3.png") as image:
        image.save(folder / "train.png")
    return folder


def names_of(table: CopyTable, found: Unlabelled) -> dict[str, bool]:
    """Left out → exact."""
    chosen = zip(table.left_out.tolist(), table.exact[table.held_out].tolist(), strict=True)
    return {Path(found.images.names[i]).name: exact for i, exact in chosen}


def test_copies_of_validation_and_test_images_are_left_out_and_those_of_training_images_stay(
    scenes: Path, tmp_path: Path
) -> None:
    found = find(scenes, add_copies(scenes, tmp_path / "more"))
    table = find_copies(load_dataset(DataRecipe(source=str(scenes))), found)
    assert names_of(table, found) == {"exact.bmp": True, "near.jpg": False, "small.png": False}
    assert {Path(name).name for name in table.kept(found.images).names} == {
        *("new0.png", "new1.png", "new2.png", "train.png")
    }
    said = describe_use(found, table, 1.5)
    assert "7 images" in said
    assert "1 exact and 2 near copies of validation and test images are left out" in said
    assert "1 equal to training images stay" in said
    assert "1.5 of them per labelled image (distill.unlabelled_ratio)" in said


def test_an_image_that_is_in_training_and_in_test_is_left_out(scenes: Path, tmp_path: Path) -> None:
    with Image.open(scenes / "test" / "a" / "38.png") as image:
        image.save(scenes / "train" / "a" / "leak.png")
    found = find(scenes, add_copies(scenes, tmp_path / "more"))
    table = find_copies(load_dataset(DataRecipe(source=str(scenes))), found)
    assert "exact.bmp" in names_of(table, found)


def test_held_out_images_of_class_folders_are_found_as_copies(tmp_path: Path) -> None:
    """Without split folders, validation and test images are drawn out of the class folders."""
    root = tmp_path / "set"
    for name, first in (("a", 0), ("b", 40)):
        (root / name).mkdir(parents=True)
        for number in range(20):
            make_scene(first + number).save(root / name / f"{number}.png")
    dataset = load_dataset(DataRecipe(source=str(root)))
    found = find(root, root / "a")
    table = find_copies(dataset, found)
    held_out = [*dataset.valid.names, *dataset.test.names]
    assert {name.removeprefix(f"{root}/") for name in table.kept(found.images).names} == {
        name for name in (f"a/{number}.png" for number in range(20)) if name not in held_out
    }


def test_a_second_run_looks_at_no_image(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, dataset = find(scenes, add_copies(scenes, tmp_path / "more")), load_dataset(DataRecipe(source=str(scenes)))
    first = find_copies(dataset, found)
    monkeypatch.setattr(unlabelled, "survey", lambda *_: pytest.fail("looked again"))
    second = find_copies(dataset, found)
    assert all(np.array_equal(vars(first)[name], vars(second)[name]) for name in vars(first))


def test_toolkit_data_looks_for_the_training_too(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, dataset = find(scenes, add_copies(scenes, tmp_path / "more")), load_dataset(DataRecipe(source=str(scenes)))
    check_dataset(dataset, unlabelled=found)
    monkeypatch.setattr(unlabelled, "survey", lambda *_: pytest.fail("looked again"))
    assert len(find_copies(dataset, found).left_out) == 3


def test_a_damaged_table_is_made_again(scenes: Path, tmp_path: Path) -> None:
    found, dataset = find(scenes, add_copies(scenes, tmp_path / "more")), load_dataset(DataRecipe(source=str(scenes)))
    find_copies(dataset, found)
    unlabelled._table_path(dataset, found).write_bytes(b"PK?")
    assert len(find_copies(dataset, found).left_out) == 3


def test_no_place_for_the_table_is_an_error_in_one_line(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, dataset = find(scenes, add_copies(scenes, tmp_path / "more")), load_dataset(DataRecipe(source=str(scenes)))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot write .*KD_TOOLKIT_CACHE"):
        find_copies(dataset, found)


def test_the_bound_of_the_hash_lies_between_copies_and_other_pictures() -> None:
    """Of 100 pictures, changed in ten ways each, and of all pairs of different ones: bits of 64 that differ.

    The bound takes every copy as a candidate, and so few others that the comparison of thumbnails settles them.
    """
    scenes = [make_scene(seed) for seed in range(100)]

    def hashes(images: list[Image.Image]) -> np.ndarray:
        return hash_thumbnails(np.stack([make_thumbnail(image) for image in images]))

    own = hashes(scenes)
    of_copies = np.concatenate(
        [np.bitwise_count(hashes([change(scene) for scene in scenes]) ^ own) for change in CHANGES.values()]
    )
    rows, columns = np.triu_indices(100, 1)
    of_others = np.bitwise_count(own[rows] ^ own[columns])
    assert of_copies.max() <= HASH_DISTANCE
    assert (of_others <= HASH_DISTANCE).mean() < 1e-3
    assert abs(float(of_others.mean()) - 32) < 2


def test_unreadable_ones_are_left_out_and_named(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_unlabelled(tmp_path / "more", 4)
    (folder / "broken.png").write_bytes(b"GIF?")
    found, preprocess = find(class_folders, folder), Preprocess(32, 36, (0.5,) * 3, (0.5,) * 3)
    pixels = load_unlabelled_pixels(found.images, found.sha256, preprocess)
    assert len(pixels) == 4
    assert "left out of unlabelled: " in capsys.readouterr().err
    assert len(load_unlabelled_pixels(found.images, found.sha256, preprocess)) == 4, "from the cache"
    with pytest.raises(DataError, match="1 of 5 unlabelled images cannot be read"):
        load_unlabelled_pixels(found.images, found.sha256, preprocess, strict=True)


def test_images_of_which_none_can_be_read_are_refused(class_folders: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    found = find(class_folders, tmp_path / "bad")
    with pytest.raises(DataError, match="none of the unlabelled images can be read"):
        load_unlabelled_pixels(found.images, found.sha256, Preprocess(32, 36, (0.5,) * 3, (0.5,) * 3))


def test_toolkit_data_reports_them_as_text_and_as_json(scenes: Path, tmp_path: Path) -> None:
    folder = add_copies(scenes, tmp_path / "more")
    (folder / "broken.png").write_bytes(b"")
    (folder / "again.png").write_bytes((folder / "new0.png").read_bytes())
    run = CliRunner().invoke(app, ["data", str(scenes), "--unlabelled", str(folder)])
    assert run.exit_code == 0, run.output
    assert "unlabelled: 9 images in" in run.output
    assert "1 unreadable, 1 repeated; copies of validation and test images: 1 exact, 2 near" in run.output
    assert "equal to training images, which may stay: 1" in run.output
    assert "3 unlabelled images that show a validation or test image" in run.output
    assert "near.jpg ~ test/a/39.png (test)" in run.output
    run = CliRunner().invoke(app, ["data", str(scenes), "--unlabelled", str(folder), "--json"])
    content = json.load(io.StringIO(run.stdout))
    part = content["unlabelled"]
    assert (part["images"], part["repeated"], [one["name"] for one in part["unreadable"]]) == (
        *(9, 1),
        [f"{folder}/broken.png"],
    )
    assert {(Path(one["name"]).name, one["of"]["split"], one["exact"]) for one in part["copies"]} == {
        *(("exact.bmp", "test", True), ("near.jpg", "test", False)),
        *(("small.png", "valid", False), ("train.png", "train", True)),
    }
    assert {"unlabelled unreadable", "unlabelled copies"} <= {finding["kind"] for finding in content["findings"]}


def test_toolkit_data_says_nothing_of_them_without_any(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "set", (6, 2, 2))
    run = CliRunner().invoke(app, ["data", str(root), "--json"])
    assert "unlabelled" not in json.loads(run.stdout)
