"""Sets known by name: the places of their files, and the messages for damaged files and failed downloads."""

import gzip
import hashlib
import pickle
import struct
import tarfile
from pathlib import Path
from typing import NoReturn
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from PIL import Image

from toolkit.data import named
from toolkit.data.cache import cache_folder
from toolkit.data.idx import FILES, read_idx
from toolkit.data.sources import NAMED, builtin_recipe_of, load_dataset
from toolkit.errors import DataError
from toolkit.recipe import load_builtin
from toolkit.settings import DataRecipe

FASHION = DataRecipe(source="fashion-mnist", image_size=32, resize=0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test alone, on a machine without Debian's package or a network."""
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(named, "FASHION_MNIST_SYSTEM_FOLDER", tmp_path / "system")

    def no_network(*_: object, **__: object) -> NoReturn:
        raise URLError("no network in tests")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", no_network)
    return tmp_path / "cache"


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    opener = gzip.open if path.suffix == ".gz" else open
    path.parent.mkdir(parents=True, exist_ok=True)
    with opener(path, "wb") as file:
        file.write(header + array.tobytes())


def write_fashion(folder: Path, suffix: str = ".gz", seed: int = 0) -> list[np.ndarray]:
    """Fashion-MNIST in small: 40 training and 10 test pictures."""
    draw = np.random.default_rng(seed)
    arrays = []
    for count in (40, 10):
        arrays.append(draw.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        arrays.append((np.arange(count) % 10).astype(np.uint8))
    for name, array in zip(FILES, arrays, strict=True):
        write_idx(folder / f"{name}{suffix}", array)
    return arrays


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_fashion_mnist_from_the_cache(cache: Path, suffix: str) -> None:
    train_pixels, train_labels, test_pixels, test_labels = write_fashion(cache / "fashion-mnist", suffix)
    dataset = load_dataset(FASHION.model_copy(update={"validation_fraction": 0.25}))
    assert dataset.classes[9] == "Ankle boot"
    assert tuple(dataset.classes) == tuple(torchvision.datasets.FashionMNIST.classes)
    assert [len(images) for images in dataset.splits.values()] == [30, 10, 10]
    assert dataset.notes == (
        "validation: 10 of 40 training images, held out at random, the same share of each class (split_seed 0)",
    )
    assert np.bincount(dataset.valid.labels).tolist() == [1] * 10
    assert dataset.test.labels.tolist() == test_labels.tolist()
    assert np.array_equal(np.asarray(dataset.test.read(3)), test_pixels[3])
    for name, label, i in zip(dataset.train.names, dataset.train.labels, range(30), strict=True):
        number = int(name.removeprefix("train/"))
        assert label == train_labels[number]
        assert np.array_equal(np.asarray(dataset.train.read(i)), train_pixels[number])


def test_the_cache_goes_before_the_system_and_the_system_before_a_download(cache: Path, tmp_path: Path) -> None:
    downloaded = write_fashion(cache / "fashion-mnist" / "FashionMNIST" / "raw", suffix="", seed=1)
    assert np.array_equal(np.asarray(load_dataset(FASHION).test.read(0)), downloaded[2][0])
    (cache / "fashion-mnist" / "FashionMNIST" / "raw" / FILES[0]).unlink()
    system = write_fashion(tmp_path / "system", seed=2)
    assert np.array_equal(np.asarray(load_dataset(FASHION).test.read(0)), system[2][0])
    own = write_fashion(cache / "fashion-mnist", seed=3)
    assert np.array_equal(np.asarray(load_dataset(FASHION).test.read(0)), own[2][0])


@pytest.mark.usefixtures("cache")
def test_a_set_that_cannot_be_had_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(FASHION)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("no network in tests", "dataset-fashion-mnist", "make data", "--data DIR"):
        assert part in message


def test_torchvisions_download_is_used_and_checked(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = write_fashion(tmp_path / "server")
    kind = torchvision.datasets.FashionMNIST
    checksums = [
        (f"{name}.gz", hashlib.md5((tmp_path / "server" / f"{name}.gz").read_bytes()).hexdigest()) for name in FILES
    ]

    def retrieve(url: str, filename: str | Path, **_: object) -> None:
        Path(filename).write_bytes((tmp_path / "server" / url.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", retrieve)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    with pytest.raises(DataError, match="its download failed"):
        load_dataset(FASHION)  # these files do not have the published checksums
    monkeypatch.setattr(kind, "resources", checksums)
    assert np.array_equal(np.asarray(load_dataset(FASHION).test.read(0)), arrays[2][0])


def test_the_published_set_is_whole() -> None:
    folder = named.FASHION_MNIST_SYSTEM_FOLDER
    if not folder.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    dataset = load_dataset(FASHION)
    assert [len(images) for images in dataset.splits.values()] == [54_000, 6_000, 10_000]
    assert np.bincount(dataset.valid.labels).tolist() == [600] * 10
    every = np.stack(
        [np.asarray(images.read(i)) for images in (dataset.train, dataset.valid) for i in range(len(images))]
    )
    counts, values = np.bincount(every.ravel(), minlength=256) / every.size, np.arange(256) / 255
    mean = float(counts @ values)
    assert round(mean, 4) == 0.2860  # the widely published mean and standard deviation
    assert round(float(counts @ (values - mean) ** 2) ** 0.5, 4) == 0.3530


def spoil(path: Path, change: str) -> None:
    content = path.read_bytes()
    raw = gzip.decompress(content)
    spoiled = {
        "truncated": content[:-200],
        "short": gzip.compress(raw[:-5]),
        "long": gzip.compress(raw + b"x"),
        "magic": gzip.compress(b"\x00\x00\x0b\x03" + raw[4:]),
        "empty": gzip.compress(b""),
        "not gzip": b"<html>moved</html>",
        "flipped": content[:2000] + bytes([content[2000] ^ 0xFF]) + content[2001:],
    }
    path.write_bytes(spoiled[change])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("truncated", "Compressed file ended"),
        ("short", "31355 bytes of data, but its header announces 31360"),
        ("long", "31361 bytes of data, but its header announces 31360"),
        ("magic", "magic number 0x00000b03 instead of 0x00000803"),
        ("empty", "0 bytes are too few for a header"),
        ("not gzip", "Not a gzipped file"),
        ("flipped", ""),
    ],
)
def test_a_damaged_idx_file_is_named(cache: Path, change: str, reason: str) -> None:
    write_fashion(cache / "fashion-mnist")
    spoil(cache / "fashion-mnist" / "train-images-idx3-ubyte.gz", change)
    with pytest.raises(DataError) as caught:
        load_dataset(FASHION)
    message = str(caught.value)
    assert str(cache / "fashion-mnist" / "train-images-idx3-ubyte.gz") in message
    assert reason in message
    assert "put a whole copy there, or delete it" in message
    assert "\n" not in message


def test_labels_that_do_not_fit_the_images(cache: Path) -> None:
    write_fashion(cache / "fashion-mnist")
    path = cache / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz"
    write_idx(path, np.zeros(9, dtype=np.uint8))
    with pytest.raises(DataError, match="9 labels for 10 images"):
        load_dataset(FASHION)
    write_idx(path, np.full(10, 10, dtype=np.uint8))
    with pytest.raises(DataError, match="label 10, but there are 10 classes"):
        load_dataset(FASHION)


def test_a_header_that_announces_too_much_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x-ubyte"
    path.write_bytes(struct.pack(">4I", 0x0803, 2**32 - 1, 2**32 - 1, 2**32 - 1))
    with pytest.raises(DataError, match="0 bytes of data, but its header announces 7922816"):
        read_idx(path, 3)


def make_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    """CIFAR-10's archive in small, with its own checksums; returns the test pixels (N, H, W, 3) and labels."""
    kind = torchvision.datasets.CIFAR10
    draw = np.random.default_rng(0)
    inside = folder / kind.base_folder
    inside.mkdir(parents=True)

    def write(name: str, content: object) -> list[str]:
        (inside / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((inside / name).read_bytes()).hexdigest()]

    batches = []
    for name in ("data_batch_1", "test_batch"):
        pixels = draw.integers(0, 256, (20, 3072), dtype=np.uint8)
        batches.append({"name": name, "data": pixels, "labels": [i % 10 for i in range(20)]})
    train, test = (write(batch.pop("name"), batch) for batch in batches)
    meta = write("batches.meta", {"label_names": [f"kind {i}" for i in range(10)]})
    monkeypatch.setattr(kind, "train_list", [train])
    monkeypatch.setattr(kind, "test_list", [test])
    monkeypatch.setattr(kind, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    with tarfile.open(folder / kind.filename, "w:gz") as archive:
        archive.add(inside, arcname=kind.base_folder)
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5((folder / kind.filename).read_bytes()).hexdigest())
    for path in inside.iterdir():
        path.unlink()
    inside.rmdir()
    return batches[1]["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), batches[1]["labels"]


def test_cifar10_from_an_archive_put_there_by_hand(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = make_cifar(cache / "cifar10", monkeypatch)
    dataset = load_dataset(DataRecipe(source="cifar10", image_size=32, resize=0))
    assert dataset.classes[3] == "kind 3"
    assert [len(images) for images in dataset.splits.values()] == [10, 10, 20]
    assert dataset.test.labels.tolist() == labels
    assert np.array_equal(np.asarray(dataset.test.read(7)), pixels[7])


def test_food101_from_its_folder(cache: Path) -> None:
    base = cache / "food101" / "food-101"
    (base / "meta").mkdir(parents=True)
    for split, first in (("train", 0), ("test", 100)):
        lists = {name: [f"{name}/{first + i}" for i in range(3)] for name in ("soup", "pie")}
        (base / "meta" / f"{split}.json").write_text(str(lists).replace("'", '"'))
        for path in (path for paths in lists.values() for path in paths):
            (base / "images" / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 7), (first, 0, 0)).save(base / "images" / f"{path}.jpg")
    dataset = load_dataset(DataRecipe(source="food101"))
    assert dataset.classes == ("pie", "soup")
    assert dataset.test.names == tuple(f"{name}/{100 + i}.jpg" for name in ("pie", "soup") for i in range(3))
    assert dataset.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(dataset.train) == 4
    assert dataset.test.read(0).size == (9, 7)


@pytest.mark.parametrize(
    ("name", "archive"),
    [("cifar10", "cifar-10-python.tar.gz"), ("cifar100", "cifar-100-python.tar.gz"), ("food101", "food-101.tar.gz")],
)
def test_no_network_says_where_to_put_the_archive(cache: Path, name: str, archive: str) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(DataRecipe(source=name))
    assert f"put its archive at {cache / name / archive} by hand" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "near"), [("fashion_mnist", "fashion-mnist"), ("CIFAR-10", "cifar10"), ("food11", "food-11")]
)
def test_a_name_nearly_right_is_recognised(typed: str, near: str) -> None:
    with pytest.raises(DataError, match=f"did you mean {near}\\?"):
        load_dataset(DataRecipe(source=typed))


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder("x") == Path(str(cache_folder())) / "x"
    monkeypatch.delenv("KD_TOOLKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/cache")
    assert cache_folder("a", "b") == Path("/some/cache/kd-toolkit/a/b")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/kd-toolkit")


def test_a_cache_in_a_home_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_TOOLKIT_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(DataError, match="begins with ~, but this user has no home folder; set KD_TOOLKIT_CACHE to"):
        cache_folder("x")


def test_a_set_and_all_that_is_known_of_it_are_one_line_of_the_table() -> None:
    assert {name for name in NAMED if builtin_recipe_of(name)} == {"fashion-mnist", "food-11"}
    for name, known in NAMED.items():
        if known.recipe:
            assert load_builtin(known.recipe).data.source == name
    assert builtin_recipe_of("./photos") == builtin_recipe_of(None) == ""
