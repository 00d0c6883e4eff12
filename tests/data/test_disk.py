"""A map that would fill the disk or exceed the user's limit is refused in one line, before or while it is written."""

import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from data_samples import make_preprocess
from PIL import Image

from toolkit.data import decode, disk
from toolkit.data.dataset import Dataset, Images
from toolkit.data.disk import RESERVE_BYTES, SMALL_BYTES, reserve_bytes
from toolkit.data.pixels import Pixels, load_pixels
from toolkit.errors import DataError

GIB = 2**30
Usage = namedtuple("Usage", "total used free")
"""As shutil.disk_usage answers."""


@pytest.fixture(autouse=True)
def pixels_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KD_TOOLKIT_CACHE_LIMIT_GIB", raising=False)
    yield tmp_path / "cache" / "pixels"
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # pytest keeps what tests leave, and one leaves 100 MB


@pytest.fixture
def set_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """set_disk(100, 3) pretends a disk of 100 bytes of which 3 are free; further numbers: free at each further look."""

    def pretend(total_bytes: int, *free_bytes: int) -> None:
        free = list(free_bytes)

        def usage(_: Path) -> Usage:
            left = free.pop(0) if len(free) > 1 else free[0]
            return Usage(total_bytes, total_bytes - left, left)

        monkeypatch.setattr(shutil, "disk_usage", usage)

    return pretend


def make_images(count: int, side: int, decoded: list[int] | None = None) -> Dataset:
    """`count` pictures of side × side px. Images that are read beyond their headers are noted in `decoded`."""

    class Picture(Image.Image):
        def load(self) -> object:
            if decoded is not None:
                decoded.append(1)
            return super().load()

    picture = Image.new("RGB", (side, side))
    picture.__class__ = Picture
    images = Images(tuple(map(str, range(count))), np.zeros(count, dtype=np.int64), lambda _: picture)
    return Dataset("made", ("a", "b"), images, images, images, f"{count} {side}")


def load(dataset: Dataset, resize: int = 0) -> Pixels:
    return load_pixels(dataset, "train", make_preprocess(8, resize))


def refuse(dataset: Dataset, *parts: str, resize: int = 0) -> None:
    with pytest.raises(DataError) as caught:
        load(dataset, resize)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("size_bytes", "disk_bytes", "expected"),
    [
        (SMALL_BYTES, 1000 * GIB, 0),
        (SMALL_BYTES + 1, 1000 * GIB, RESERVE_BYTES),
        (50 * GIB, 20 * GIB, RESERVE_BYTES),
        (GIB, 10 * GIB, GIB // 2),
    ],
)
def test_the_reserve(size_bytes: int, disk_bytes: int, expected: int) -> None:
    assert reserve_bytes(size_bytes, disk_bytes) == expected


def test_a_map_that_does_not_fit_is_refused_before_anything_is_decoded(
    pixels_folder: Path, set_disk: Callable[..., None]
) -> None:
    decoded: list[int] = []
    set_disk(500 * GIB, 7 * 10**9)
    refuse(
        make_images(20_000, 400, decoded),
        "20,000 train images need about 9.6 GB decoded",
        f"the disk of {pixels_folder} has 7.0 GB free and keeps 1.1 GB in reserve; ",
        "set data.resize (0 now: all pixels are kept), set KD_TOOLKIT_CACHE to a folder with more room, or delete old",
        f"files in {pixels_folder}",
    )
    assert decoded == []
    assert not pixels_folder.exists()


def test_the_reserve_is_kept_and_resizing_counts(set_disk: Callable[..., None]) -> None:
    set_disk(500 * GIB, 1_073_000_000 + 108_000_000)
    refuse(make_images(400, 400), "lower data.resize (now 300)", "need about 108.0 MB decoded", resize=300)
    set_disk(500 * GIB, 1_074_000_000 + 108_000_000)
    assert load(make_images(400, 400), resize=300).data.nbytes == 108_000_000


def test_a_small_set_works_on_a_nearly_full_disk(set_disk: Callable[..., None]) -> None:
    set_disk(500 * GIB, 2_000_000)
    assert len(load(make_images(100, 50))) == 100


def test_a_small_set_is_refused_if_even_it_does_not_fit(set_disk: Callable[..., None]) -> None:
    set_disk(500 * GIB, 700_000)
    refuse(make_images(100, 50), "100 train images need about 750.0 kB decoded, but the disk of", "has 700.0 kB free;")


@pytest.mark.parametrize("answer", ["error", "nothing"])
def test_a_disk_of_unknown_size_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    def usage(_: Path) -> Usage:
        if answer == "error":
            raise OSError(38, "Function not implemented")
        return Usage(0, 0, 0)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(disk, "SMALL_BYTES", 1000)
    assert len(load(make_images(100, 50))) == 100


def test_a_disk_that_fills_up_meanwhile_stops_the_decoding(
    pixels_folder: Path, set_disk: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "SMALL_BYTES", 100_000)
    set_disk(500 * GIB, 90 * GIB, 50 * GIB, RESERVE_BYTES - 1)
    refuse(
        make_images(100, 50),
        "100 train images need about 750.0 kB decoded, but after 210.0 kB",
        "has only 1.1 GB left; decoding stopped and removed its file",
        "or delete old files in",
    )
    assert list(pixels_folder.iterdir()) == []


# --- the user's limit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "ten", "1,5"])
def test_a_limit_that_is_no_number_above_0(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv("KD_TOOLKIT_CACHE_LIMIT_GIB", limit)
    refuse(
        make_images(2, 10), f"KD_TOOLKIT_CACHE_LIMIT_GIB = '{limit}' is not a number above 0; set it to the most GiB"
    )


def test_an_empty_limit_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_TOOLKIT_CACHE_LIMIT_GIB", "")
    assert len(load(make_images(2, 10))) == 2


def test_the_limit_counts_what_is_there(pixels_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """750 kB each: the second fits to the byte, the third does not, and room is made by deleting."""
    load(make_images(100, 50))
    taken = sum(path.stat().st_size for path in pixels_folder.iterdir())
    monkeypatch.setenv("KD_TOOLKIT_CACHE_LIMIT_GIB", repr((taken + 750_000) / GIB))
    refuse(
        make_images(1000, 50),
        f"1,000 train images need about 7.5 MB decoded, but {pixels_folder} already holds 75",
        " of at most 1.5 MB; raise KD_TOOLKIT_CACHE_LIMIT_GIB (now 0.00",
        f"or delete old files in {pixels_folder}",
    )
    other = Dataset("made", ("a", "b"), *[make_images(100, 50).train] * 3, "other")
    assert len(load(other)) == 100
    refuse(make_images(50, 50), "already holds 1.5 MB of at most 1.5 MB")
    for path in pixels_folder.iterdir():
        path.unlink()
    assert len(load(make_images(50, 50))) == 50


def test_a_map_in_the_cache_is_used_whatever_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    load(make_images(100, 50))
    monkeypatch.setenv("KD_TOOLKIT_CACHE_LIMIT_GIB", "1e-9")
    assert len(load(make_images(100, 50))) == 100


def test_the_limit_holds_even_if_the_estimate_was_too_low(pixels_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "SAMPLED_IMAGES", 2)
    small, large = Image.new("RGB", (10, 10)), Image.new("RGB", (100, 100))
    images = Images(
        tuple(map(str, range(100))), np.zeros(100, dtype=np.int64), lambda i: small if i in (0, 99) else large
    )
    monkeypatch.setenv("KD_TOOLKIT_CACHE_LIMIT_GIB", repr(300_000 / GIB))
    refuse(Dataset("made", ("a", "b"), images, images, images, "uneven"), "need about 300.3 kB decoded", "holds 0 B")
    assert list(pixels_folder.iterdir()) == []


# --- what is said ----------------------------------------------------------------------------------------------------


def test_a_large_map_is_announced(
    pixels_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(make_images(100, 50))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(disk, "ANNOUNCED_BYTES", 700_000)
    load(make_images(110, 50))
    assert capsys.readouterr().err == f"decoding 110 train images takes about 825.0 kB in {pixels_folder}\n"
    load(make_images(110, 50))
    assert capsys.readouterr().err == "", "it is there already"
