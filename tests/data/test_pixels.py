"""Decoded once: the same pixels as the definition gives, whatever their sizes; the cache's promises."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from conftest import make_class_folders
from data_samples import SIZES, forbid_reading, make_dataset, make_preprocess
from PIL import Image

from toolkit.data.dataset import Dataset
from toolkit.data.pixels import Pixels, load_pixels
from toolkit.data.preprocess import Preprocess, decode_rgb, middle_box
from toolkit.data.sources import load_dataset
from toolkit.errors import DataError
from toolkit.settings import DataRecipe


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # pytest keeps what tests leave, and one leaves 300 MB


@pytest.mark.parametrize("resize", [0, 16, 21, 40])
@pytest.mark.parametrize("image_size", [8, 15, 32, 33, 64, 150, 300])
def test_centre_is_the_definition_to_the_pixel(image_size: int, resize: int) -> None:
    """Also if the cache kept only a panorama's middle, and if the network's square exceeds the image."""
    preprocess = make_preprocess(image_size, resize)
    dataset = make_dataset(SIZES)
    pixels = load_pixels(dataset, "train", preprocess)
    expected = np.stack([preprocess(dataset.train.read(i)) for i in range(len(SIZES))])
    assert np.array_equal(pixels.centre(np.arange(len(SIZES))), expected)


@pytest.mark.parametrize("size", [(28, 28), (31, 20), (90, 11)])
@pytest.mark.parametrize("image_size", [8, 28, 45])
def test_images_of_one_size_take_the_fast_way_to_the_same_pixels(size: tuple[int, int], image_size: int) -> None:
    preprocess = make_preprocess(image_size)
    dataset = make_dataset([size] * 5)
    pixels = load_pixels(dataset, "train", preprocess)
    chosen = np.array([4, 0, 0, 3])
    assert np.array_equal(pixels.centre(chosen), np.stack([preprocess(dataset.train.read(i)) for i in chosen]))
    for i in chosen:
        left, top, right, bottom = middle_box(*size, image_size)
        assert np.array_equal(pixels.whole(i), np.asarray(dataset.train.read(i))[top:bottom, left:right])
        assert pixels.sizes[i].tolist() == [bottom - top, right - left]


def test_whole_images_have_their_own_sizes_and_stay_in_the_map() -> None:
    dataset = make_dataset([(31, 20), (18, 25), (8, 8)])
    pixels = load_pixels(dataset, "train", make_preprocess(8))
    assert pixels.sizes.dtype == np.int64
    assert pixels.sizes.tolist() == [[20, 31], [25, 18], [8, 8]]
    for i in range(3):
        whole = pixels.whole(i)
        assert whole.dtype == np.uint8
        assert np.array_equal(whole, np.asarray(dataset.train.read(i)))
        assert np.shares_memory(whole, pixels.data), "a batch of large images must not fill the memory"


def test_the_centres_of_a_batch_are_a_copy_that_may_be_changed() -> None:
    for sizes in ([(10, 10)] * 2, [(10, 10), (12, 9)]):
        pixels = load_pixels(make_dataset(sizes, sha256=str(sizes)), "train", make_preprocess(8))
        batch = pixels.centre(np.array([0, 1]))
        assert batch.flags.writeable
        assert batch.flags.c_contiguous


def test_an_empty_batch() -> None:
    for sizes in ([(10, 10)] * 2, [(10, 10), (12, 9)]):
        pixels = load_pixels(make_dataset(sizes, sha256=str(sizes)), "train", make_preprocess(8))
        none = np.array([], dtype=np.int64)
        assert pixels.centre(none).shape == (0, 8, 8, 3)


def test_labels_names_and_order_are_those_of_the_split() -> None:
    dataset = make_dataset(SIZES * 10)
    one, many = (load_pixels(make_dataset(SIZES * 10, str(w)), "train", make_preprocess(8), workers=w) for w in (1, 5))
    for pixels in (one, many):
        assert len(pixels) == len(SIZES) * 10
        assert pixels.names == dataset.train.names
        assert pixels.labels.tolist() == dataset.train.labels.tolist()
        assert pixels.labels.dtype == np.int64
    assert np.array_equal(one.data, many.data)


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_second_call_decodes_nothing() -> None:
    dataset = make_dataset(SIZES)
    first = load_pixels(dataset, "train", make_preprocess(16, 20))
    second = load_pixels(forbid_reading(dataset), "train", make_preprocess(16, 20))
    assert np.array_equal(first.data, second.data)
    assert load_pixels(forbid_reading(dataset), "train", make_preprocess(12, 20)).preprocess.image_size == 12


@pytest.mark.parametrize("change", ["content", "split", "resize", "square", "members"])
def test_every_change_of_the_pixels_decodes_again(change: str) -> None:
    dataset = make_dataset(SIZES)
    load_pixels(dataset, "train", make_preprocess(16, 20))
    other = forbid_reading(dataset)
    split, preprocess = "train", make_preprocess(16, 20)
    if change == "content":
        other = Dataset(other.name, other.classes, other.train, other.valid, other.test, "b")
    elif change == "split":
        split = "valid"
    elif change == "resize":
        preprocess = make_preprocess(16, 21)
    elif change == "square":
        preprocess = make_preprocess(50, 20)
    else:
        images = other.train.subset(range(3))
        other = Dataset(other.name, other.classes, images, images, images, other.sha256)
    with pytest.raises(AssertionError, match="decoded again"):
        load_pixels(other, split, preprocess)


def test_a_changed_file_decodes_its_split_again(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(3, 1, 1))
    changed = root / "train" / "green" / "1.png"
    recipe = DataRecipe(source=str(root), image_size=32, resize=0)

    def picture() -> np.ndarray:
        pixels = load_pixels(load_dataset(recipe), "train", Preprocess.from_recipe(recipe))
        return pixels.whole(pixels.names.index("train/green/1.png"))

    before = picture()
    Image.fromarray(255 - before).save(changed)
    assert np.array_equal(picture(), 255 - before)


@pytest.mark.parametrize(("suffix", "change"), [("rgb", "cut"), ("npz", "cut"), ("npz", "empty"), ("npz", "foreign")])
def test_a_damaged_cache_is_decoded_again(
    cache: Path, capsys: pytest.CaptureFixture[str], suffix: str, change: str
) -> None:
    dataset = make_dataset(SIZES)
    before = np.array(load_pixels(dataset, "train", make_preprocess(16)).data)
    (path,) = (cache / "pixels").glob(f"*.{suffix}")
    if change == "foreign":
        np.savez(path, x=np.zeros(3))
    else:
        path.write_bytes(path.read_bytes()[:-100] if change == "cut" else b"")
    assert np.array_equal(load_pixels(dataset, "train", make_preprocess(16)).data, before)
    assert "decoding again" in capsys.readouterr().err


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_cache_that_cannot_be_written_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(_: int) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError) as caught:
        load_pixels(make_dataset(SIZES), "train", make_preprocess(16))
    message = str(caught.value)
    assert message.startswith(f"cannot keep decoded images in the cache, {cache / 'pixels'}")
    assert f"{os.strerror(code)}; free some space, or set KD_TOOLKIT_CACHE" in message
    assert list((cache / "pixels").iterdir()) == []


def test_a_cache_inside_a_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        DataError, match=r"cannot keep decoded images in the cache, .*; free some space, or set KD_TOOL"
    ):
        load_pixels(make_dataset(SIZES), "train", make_preprocess(16))


def test_processes_that_decode_at_once_do_not_disturb_each_other(cache: Path, tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "set", images_per_class=(30, 1, 1))
    code = (
        "import sys; from toolkit.data.pixels import load_pixels; from toolkit.data.preprocess import Preprocess\n"
        "from toolkit.data.sources import load_dataset; from toolkit.settings import DataRecipe; import hashlib\n"
        "recipe = DataRecipe(source=sys.argv[1], image_size=32, resize=40)\n"
        "pixels = load_pixels(load_dataset(recipe), 'train', Preprocess.from_recipe(recipe))\n"
        "sys.stdout.write(hashlib.sha256(pixels.data).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(root)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    digests = {process.communicate(timeout=600)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(digests) == 1
    assert sorted(path.suffix for path in (cache / "pixels").iterdir()) == [".npz", ".rgb"], (
        "nothing half-written stays"
    )


# --- sets larger than memory -----------------------------------------------------------------------------------------

LARGE_SET = """
import dataclasses, json, re, sys
from pathlib import Path
import numpy as np
from PIL import Image
from toolkit.data.dataset import Dataset, Images
from toolkit.data.pixels import load_pixels
from toolkit.data.preprocess import Preprocess

def anonymous_mb():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3

pictures = [Image.new("RGB", size, "red") for size in ((192, 128), (128, 192))]
most = {}
def note(stage):
    most[stage] = max(most.get(stage, 0.0), anonymous_mb() - start)
def read(i):
    if i % 50 == 0:
        note("decoding")
    return pictures[i % 2]

count = 4096
images = Images(tuple(map(str, range(count))), np.arange(count) % 2, read)
large = Dataset("large", ("a", "b"), images, images, images, "a")
start = anonymous_mb()
mixed = load_pixels(large, "train", Preprocess(96, 0, (0,) * 3, (1,) * 3), workers=2)
square = dataclasses.replace(mixed, heights=np.full(count, 128), widths=np.full(count, 192))
order = np.random.default_rng(0).permutation(count)
red = 0
for pixels, name in ((mixed, "mixed"), (square, "one size")):
    for first in range(0, count, 32):
        batch = order[first : first + 32]
        red += sum(int(pixels.whole(i)[0, 0, 0]) for i in batch) + int(pixels.centre(batch)[:, 0, 0, 0].sum())
        note(name)
json.dump({"map_mb": mixed.data.nbytes / 1e6, "red": red, "most": most}, sys.stdout)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").is_file() or "RssAnon" not in Path("/proc/self/status").read_text(),
    reason="needs Linux's /proc",
)
def test_a_set_larger_than_memory_trains() -> None:
    """302 MB are decoded and every batch is read, whichever way, in less than 60 MB of memory of its own."""
    done = subprocess.run([sys.executable, "-c", LARGE_SET], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["map_mb"] > 300
    assert found["red"] == 4 * 4096 * 255, "every image was read"
    assert set(found["most"]) == {"decoding", "mixed", "one size"}
    assert max(found["most"].values()) < 60, found


# --- broken images ---------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_set(tmp_path: Path) -> Path:
    """3 classes × 12 training images, of which one is cut short and one is no image."""
    root = make_class_folders(tmp_path / "set")
    cut = root / "train" / "red" / "3.png"
    cut.write_bytes(cut.read_bytes()[:-800])
    (root / "train" / "blue" / "7.png").write_bytes(b"<html>not found</html>")
    return root


def load(root: Path, **options: bool) -> tuple[Dataset, Pixels]:
    recipe = DataRecipe(source=str(root), image_size=32, resize=0)
    dataset = load_dataset(recipe)
    return dataset, load_pixels(dataset, "train", Preprocess.from_recipe(recipe), **options)


def test_broken_images_are_named_and_left_out(broken_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in ("decoded", "from the cache"):
        dataset, pixels = load(broken_set)
        printed = capsys.readouterr().err
        assert "left out of train: train/blue/7.png (not a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM image" in printed
        assert "left out of train: train/red/3.png (image file is truncated" in printed
        assert len(dataset.train) == 36
        assert len(pixels) == 34
        assert set(dataset.train.names) - set(pixels.names) == {"train/blue/7.png", "train/red/3.png"}
        for i, (name, label) in enumerate(zip(pixels.names, pixels.labels, strict=True)):
            assert dataset.classes[label] == name.split("/")[1]
            with Image.open(broken_set / name) as image:
                assert np.array_equal(pixels.whole(i), np.asarray(decode_rgb(image)))


def test_strict_makes_a_broken_image_an_error(broken_set: Path) -> None:
    for _ in ("decoded", "from the cache"):
        with pytest.raises(DataError) as caught:
            load(broken_set, strict=True)
        assert str(caught.value).startswith("2 of 36 train images cannot be read, the first is train/blue/7.png (not a")
        assert "toolkit data lists them all" in str(caught.value)


def test_a_dangling_link_is_a_broken_image(broken_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (broken_set / "train" / "red" / "gone.png").symlink_to(broken_set / "nowhere.png")
    assert len(load(broken_set)[1]) == 34
    assert "left out of train: train/red/gone.png (No such file or directory)" in capsys.readouterr().err


def test_many_broken_images_are_counted(broken_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("blue", "green"):
        for i in range(11):
            (broken_set / "train" / name / f"{i}.png").write_bytes(b"")
    load(broken_set)
    printed = capsys.readouterr().err
    assert printed.count("left out of train: train/") == 20
    assert "(the file is empty)" in printed
    assert "left out of train: 3 more" in printed


def test_a_class_without_a_readable_image_is_an_error(broken_set: Path) -> None:
    for path in (broken_set / "train" / "green").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the train images of class 'green' can be read, one is train/"):
        load(broken_set)
