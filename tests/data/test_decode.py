"""Writing the map: its size is known beforehand, and a killed process leaves nothing behind that counts or stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image, make_png
from data_samples import SIZES, make_dataset, make_preprocess
from PIL import Image

from toolkit.data import decode
from toolkit.data.dataset import Dataset, Images
from toolkit.data.decode import estimate_bytes
from toolkit.data.pixels import load_pixels
from toolkit.data.preprocess import middle_box

PANORAMAS = [(400, 100), (100, 400)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_only_the_middle_of_a_panorama_is_kept() -> None:
    strip = np.ascontiguousarray(np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None], (10, 200, 3)))

    def keep(pixels: np.ndarray, image_size: int = 8) -> np.ndarray:
        return make_preprocess(image_size).keep_middle(Image.fromarray(pixels))

    assert keep(strip)[0, :, 0].tolist() == list(range(90, 110))
    assert keep(strip, 96)[0, :, 0].tolist() == list(range(52, 148))
    assert keep(strip.transpose(1, 0, 2)).shape == (20, 10, 3)
    assert keep(strip[:, :23]).shape == (10, 23, 3), "less than 4 px too long stays"
    for length in range(20, 60):
        left, top, right, bottom = middle_box(length, 10, 0)
        assert (top, bottom, left + right) == (0, 10, length)
        assert middle_box(10, length, 0) == (0, left, 10, right)
        assert right - left == length if length < 24 else 20 <= right - left <= 23


# --- the estimate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", [0, 16, 21, 40])
@pytest.mark.parametrize("image_size", [8, 33, 64, 300])
def test_the_estimate_is_exact_if_every_header_is_read(image_size: int, resize: int) -> None:
    preprocess = make_preprocess(image_size, resize)
    dataset = make_dataset(SIZES)
    least_long_side = image_size if resize == 0 or resize * 2 < image_size else 0
    assert preprocess.least_long_side == least_long_side
    assert estimate_bytes(dataset.train, preprocess) == load_pixels(dataset, "train", preprocess).data.nbytes


@pytest.mark.parametrize("size", [(28, 28), (500, 375)])
def test_the_estimate_is_exact_for_one_size(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size)
    images = Images(tuple(map(str, range(5000))), np.zeros(5000, dtype=np.int64), lambda _: picture)
    assert estimate_bytes(images, make_preprocess(8)) == 5000 * size[0] * size[1] * 3


def test_the_estimate_looks_at_few_images_all_over_the_split() -> None:
    """Sizes that differ by class are found, though the classes lie one after another."""
    looked: list[int] = []
    pictures = [Image.new("RGB", (side, side)) for side in (10, 20, 30, 40)]

    def read(i: int) -> Image.Image:
        looked.append(i)
        return pictures[i // 1000]

    images = Images(tuple(map(str, range(4000))), np.zeros(4000, dtype=np.int64), read)
    exact = 1000 * 3 * (100 + 400 + 900 + 1600)
    assert exact <= estimate_bytes(images, make_preprocess(8)) <= 1.3 * exact
    assert len(looked) == 64
    assert (min(looked), max(looked)) == (0, 3999)


def test_the_estimate_decodes_nothing_and_passes_over_what_it_cannot_read(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(4)]
    for i, name in enumerate(names):
        make_image(0, seed=i, size=(48, 40)).save(tmp_path / name)
    half = tmp_path / names[0]
    half.write_bytes(half.read_bytes()[:200])
    (tmp_path / names[1]).write_bytes(b"no image")
    images = Images.from_files(tmp_path, names, [0] * 4)
    assert estimate_bytes(images, make_preprocess(8)) == 4 * 48 * 40 * 3
    assert estimate_bytes(images.subset([1]), make_preprocess(8)) == 0


def test_a_picture_turned_by_exif_is_estimated_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, size in enumerate(PANORAMAS):
        make_image(0, seed=i, size=size).save(tmp_path / f"{i}.jpg", exif=exif)
    images = Images.from_files(tmp_path, ["0.jpg", "1.jpg"], [0, 0])
    assert estimate_bytes(images, make_preprocess(8, 50)) == 2 * 50 * 100 * 3


# --- too little memory -----------------------------------------------------------------------------------------------


def starve(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """No image of that width finds memory."""
    load = Image.Image.load

    def fail(image: Image.Image) -> object:
        if image.width == width:
            raise MemoryError
        return load(image)

    monkeypatch.setattr(Image.Image, "load", fail)


def test_one_image_without_memory_does_not_end_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset([(30, 20), (33, 21), (30, 20), (30, 20)])
    with monkeypatch.context() as starved:
        starve(starved, 33)
        for _ in range(2):
            pixels = load_pixels(dataset, "train", make_preprocess(8))
            assert pixels.names == ("0.png", "2.png", "3.png")
            assert "left out of train: 1.png (there is not enough memory to decode it)" in capsys.readouterr().err
    pixels = load_pixels(dataset, "train", make_preprocess(8))
    assert len(pixels) == 4, "more memory, more images: what lacked it is not remembered"
    assert "lacks images that did not fit into memory; decoding again" in capsys.readouterr().err
    assert np.array_equal(pixels.whole(1), np.asarray(dataset.train.read(1)))


def test_an_image_that_is_too_large_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bound is that of predict and the demo."""
    names = ["0.png", "1.png", "bomb.png"]
    for i, name in enumerate(names[:2]):
        make_image(i, seed=i).save(tmp_path / name)
    (tmp_path / "bomb.png").write_bytes(make_png(12_001, 10_000))
    images = Images.from_files(tmp_path, names, [0, 1, 1])
    dataset = Dataset("made", ("a", "b"), images, images, images, "a")
    assert load_pixels(dataset, "train", make_preprocess(8)).names == ("0.png", "1.png")
    assert (
        "left out of train: bomb.png (too large: 12001×10000 px; give a picture of at most 120 million pixels)"
        in " ".join(capsys.readouterr().err.split())
    )


def test_under_strict_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    starve(monkeypatch, 33)
    with pytest.raises(decode.DataError, match=r"the first is 1\.png \(there is not enough memory to decode it\)"):
        load_pixels(make_dataset([(30, 20), (33, 21)]), "train", make_preprocess(8), strict=True)


def test_images_of_extreme_proportions_are_kept_as_predict_sees_them() -> None:
    sizes = [(2, 20_000), (20_000, 2), (1, 60_000), (60_000, 1), (5, 5), (400, 3)]
    dataset = make_dataset(sizes)
    for preprocess in (make_preprocess(160, 176), make_preprocess(32, 36), make_preprocess(24), make_preprocess(64, 8)):
        pixels = load_pixels(dataset, "train", preprocess)
        assert pixels.data.nbytes < len(sizes) * 3 * 180 * 360
        expected = np.stack([preprocess(dataset.train.read(i)) for i in range(len(sizes))])
        assert np.array_equal(pixels.centre(np.arange(len(sizes))), expected)
        assert estimate_bytes(dataset.train, preprocess) == pixels.data.nbytes


# --- processes that die ----------------------------------------------------------------------------------------------

STOPS_HALFWAY = """
import sys, time
sys.path[:0] = sys.argv[1:]
from data_samples import make_dataset, make_preprocess
from toolkit.data.dataset import Dataset, Images
from toolkit.data.pixels import load_pixels
from toolkit.data.preprocess import middle_box
made = make_dataset([(64, 64)] * 200)
def read(i):
    if i == 160:
        print("halfway", flush=True)
        while True:
            time.sleep(60)
    return made.train.read(i)
images = Images(made.train.names, made.train.labels, read)
load_pixels(Dataset("made", made.classes, images, images, images, "a"), "train", make_preprocess(8), workers=1)
"""


def kill_while_decoding() -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-c", STOPS_HALFWAY, str(here), str(here.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "halfway\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def age(path: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_process_leaves_a_hidden_file_that_a_later_decode_removes(cache: Path) -> None:
    kill_while_decoding()
    (leftover,) = (cache / "pixels").iterdir()
    assert leftover.name.startswith(".train-")
    assert leftover.suffix == ".rgb"
    assert leftover.stat().st_size > 0, "it died in the middle"

    dataset = make_dataset([(64, 64)] * 200)
    assert len(load_pixels(dataset, "train", make_preprocess(8))) == 200
    assert leftover.exists(), "it might be a process that lives"
    age(leftover, hours=23)
    load_pixels(dataset, "valid", make_preprocess(8))
    assert leftover.exists()
    age(leftover, hours=25)
    load_pixels(dataset, "test", make_preprocess(8))
    assert not leftover.exists()


def test_only_forgotten_temporary_files_are_removed(cache: Path) -> None:
    load_pixels(make_dataset(SIZES), "train", make_preprocess(8))
    folder = cache / "pixels"
    whole = set(folder.iterdir())
    other = [folder / ".gitignore", folder / ".nfs0001", folder / "old.rgb"]
    gone = [folder / ".train-0.rgb.x1.rgb", folder / ".train-0.npz.x2.npz"]
    (folder / ".folder.rgb").mkdir()
    for path in (*other, *gone):
        path.write_bytes(b"x")
    for path in folder.iterdir():
        age(path, hours=1000)
    load_pixels(make_dataset(SIZES), "valid", make_preprocess(8))
    assert whole | set(other) | {folder / ".folder.rgb"} <= set(folder.iterdir())
    assert not any(path.exists() for path in gone)


def test_pixels_never_get_their_name_before_their_index(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full at the last moment leaves no gigabytes that nothing knows of."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decode.np, "savez", fail)
    with pytest.raises(decode.DataError, match="No space left on device; free some space"):
        load_pixels(make_dataset(SIZES), "train", make_preprocess(8))
    assert list((cache / "pixels").iterdir()) == []
