"""Memory at the peak: that of one picture in a process of its own, and what happens where there is less."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from demo_server import Server, as_pairs, ask, connect, make_model_dir, request, save_picture
from gradio_client.exceptions import AppError
from PIL import Image
from tiny_onnx import save_colour_model

from toolkit.data.formats import READERS
from toolkit.data.picture_file import decoding_bytes, open_image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's way of counting memory"),
]

LARGEST, FIFTH = (12_000, 10_000), (6_000, 4_000)
"""120 million pixels, the most that are read; and a fifth of them."""

PEAK = """
import resource, sys
from pathlib import Path
from PIL import Image
from toolkit.data.picture_file import open_image
from toolkit.data.preprocess import UNREADABLE, Preprocess, hash_pixels, preview, why_unreadable
from toolkit.data.reading import find_kinds

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

Image.init()
seen, large, whole = (Preprocess(160, resize, (0,) * 3, (1,) * 3) for resize in (176, 2048, 0))
looks = hash_pixels, preview, lambda image: find_kinds(image, "a")
works = seen, large.keep_middle, whole.keep_middle, *looks
for work in works:
    work(Image.new("RGBA", (300, 400)))
idle = peak_mb()
try:
    for work in works:
        work(open_image(Path(sys.argv[1])))
    print(peak_mb() - idle, "decoded")
except UNREADABLE as error:
    print(peak_mb() - idle, why_unreadable(error))
"""


def measure_peak(path: Path) -> tuple[float, str]:
    """MB above the idle process that every way to read a picture takes at its peak, and what came of it."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    peak_mb, told = done.stdout.rstrip("\n").split(" ", 1)
    return float(peak_mb), told


def noise(size: tuple[int, int]) -> Image.Image:
    """Not all one colour, and made fast."""
    tile = Image.fromarray(np.random.default_rng(0).integers(0, 256, (250, 250, 3), dtype=np.uint8))
    image = Image.new("RGB", size)
    for left in range(0, size[0], 250):
        image.paste(tile, (left, 0))
    row = image.crop((0, 0, size[0], 250))
    for top in range(250, size[1], 250):
        image.paste(row, (0, top))
    return image


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FAST = {"compress_level": 1}
CLEAR = (9, 8, 7, 6)

Size = tuple[int, int]
PICTURES: dict[str, Callable[[Path, Size], None]] = {
    "rgb.png": lambda path, size: Image.new("RGB", size, "red").save(path, **FAST),
    "rgba.png": lambda path, size: Image.new("RGBA", size, CLEAR).save(path, **FAST),
    "grey.png": lambda path, size: Image.new("L", size, 9).save(path, **FAST),
    "grey_alpha.png": lambda path, size: Image.new("LA", size, CLEAR[:2]).save(path, **FAST),
    "16_bits.png": lambda path, size: Image.new("I;16", size, 40_000).save(path, **FAST),
    "1_bit.png": lambda path, size: Image.new("1", size, 1).save(path, **FAST),
    "palette.png": lambda path, size: Image.new("P", size, 3).save(path, transparency=3, **FAST),
    "turned.png": lambda path, size: Image.new("RGBA", size, CLEAR).save(path, exif=turned(7), **FAST),
    "standing.png": lambda path, size: Image.new("RGBA", (6, size[0] * size[1] // 6)).save(path, **FAST),
    "lying.png": lambda path, size: Image.new("RGBA", (size[0] * size[1] // 4, 4)).save(path, **FAST),
    "plain.jpg": lambda path, size: noise(size).save(path, quality=80),
    "turned.jpg": lambda path, size: noise(size).save(path, quality=80, exif=turned(6)),
    "cmyk.jpg": lambda path, size: Image.new("CMYK", size, CLEAR).save(path),
    "progressive.jpg": lambda path, size: Image.new("RGB", size, "red").save(path, progressive=True),
    "progressive_grey.jpg": lambda path, size: Image.new("L", size, 9).save(path, progressive=True),
    "animated.gif": lambda path, size: Image.new("P", size, 3).save(
        path, save_all=True, append_images=[Image.new("P", size, 4)]
    ),
    "rgb.bmp": lambda path, size: Image.new("RGB", size, "red").save(path),
    "rgba.bmp": lambda path, size: Image.new("RGBA", size, CLEAR).save(path),
    "lossy.webp": lambda path, size: noise((size[0] // 2, size[1])).save(path, method=0, quality=30),
    "lossless.webp": lambda path, size: noise((size[0] // 2, size[1])).save(path, method=0, lossless=True, quality=0),
    "raw.tif": lambda path, size: Image.new("RGBA", size, CLEAR).save(path),
    "packed.tif": lambda path, size: Image.new("RGBA", size, CLEAR).save(path, compression="tiff_lzw"),
    "turned.tif": lambda path, size: Image.new("RGB", size, "red").save(path, exif=turned(8)),
    "rgb.ppm": lambda path, size: Image.new("RGB", size, "red").save(path),
}
READER_OF = {".tif": "TIFF", ".ppm": "PPM"}
MB_OF_BANDS = 75
"""The part of the memory that does not grow with the picture."""


@pytest.mark.parametrize("name", PICTURES)
def test_a_fifth_of_the_most_pixels_takes_a_fifth_of_1_gb(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if READER_OF.get(path.suffix, "PNG") not in READERS:
        pytest.skip(f"{path.suffix} is not read")
    PICTURES[name](path, FIFTH)
    peak_mb, told = measure_peak(path)
    assert told == "decoded"
    assert peak_mb < (1000 - MB_OF_BANDS) / 5 + MB_OF_BANDS
    assert peak_mb < max(decoding_bytes(open_image(path)), 7 * FIFTH[0] * FIFTH[1]) / 1e6 + MB_OF_BANDS


@pytest.mark.parametrize("name", ["turned.png", "standing.png", "progressive.jpg"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_largest_picture_takes_less_than_1_gb(name: str, tmp_path: Path) -> None:
    PICTURES[name](tmp_path / name, LARGEST)
    peak_mb, told = measure_peak(tmp_path / name)
    assert told == "decoded"
    assert peak_mb < 1000


@pytest.mark.parametrize(
    ("name", "options"), [("a.jpg", {"progressive": True, "subsampling": 0}), ("a.webp", {"method": 0})]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_largest_picture_that_cannot_be_decoded_in_that_is_refused(
    name: str, options: dict[str, object], tmp_path: Path
) -> None:
    Image.new("RGB", LARGEST, "red").save(tmp_path / name, **options)
    peak_mb, told = measure_peak(tmp_path / name)
    assert told.startswith("too large: 12000×10000 px of this kind take 1.")
    assert peak_mb < 100


SET_PEAK = """
import sys
from pathlib import Path
from toolkit.data import parallel
from toolkit.data.check import check_dataset
from toolkit.data.pixels import load_pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import load_dataset
from toolkit.machine.devices import keep_freed_memory
from toolkit.recipe import DataRecipe

def peak_mb():
    line, = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3

parallel.BLOCK_IMAGES = 1
if sys.argv[1] == "training":
    keep_freed_memory()

def work(folder):
    dataset = load_dataset(DataRecipe(source=folder))
    if sys.argv[1] == "data":
        assert not check_dataset(dataset, workers=4).unreadable
    else:
        assert len(load_pixels(dataset, "train", Preprocess(160, 176, (0,) * 3, (1,) * 3), workers=4)) == 12

work(sys.argv[2])
idle = peak_mb()
work(sys.argv[3])
print(peak_mb() - idle)
"""
"""The peak of looking at a set, or of decoding it for a training, with several threads, over that of a small set."""


SEVERAL = [
    ("training", "lossy.webp"),
    ("data", "progressive.jpg"),
    *(
        (stage, name)
        for stage in ("data", "training")
        for name in ("rgba.png", "turned.png", "packed.tif", "turned.tif", "plain.jpg")
    ),
    ("training", "progressive.jpg"),
    ("data", "lossy.webp"),
]
"""The two that took most come first. All take ten minutes: KD_TOOLKIT_PICTURES=all."""


@pytest.mark.parametrize(("stage", "name"), SEVERAL if os.environ.get("KD_TOOLKIT_PICTURES") == "all" else SEVERAL[:2])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_several_large_pictures_take_less_than_1_gb_together(
    stage: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of half the largest size two may fit, and four do not, however much memory the machine has."""
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "cache"))
    for root in ("small", "large"):
        for split, count in (("train", 6), ("val", 1), ("test", 1)):
            for label in ("blue", "red"):
                (tmp_path / root / split / label).mkdir(parents=True)
                for i in range(count):
                    Image.new("RGB", (60 + i, 50), label).save(tmp_path / root / split / label / f"{i}.png")
    PICTURES[name](tmp_path / name, (10_000, 6_000))
    for label in ("blue", "red"):
        for i in range(2):
            (tmp_path / "large" / "train" / label / f"{i}.png").unlink()
            (tmp_path / "large" / "train" / label / f"{i}{Path(name).suffix}").hardlink_to(tmp_path / name)
    command = [sys.executable, "-c", SET_PEAK, stage, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 100 < float(done.stdout) < 1000


LIMITED = """
import resource, sys
import onnxruntime, PIL.Image
import toolkit.predict
from toolkit.cli import ending
from toolkit.data.pixels import load_pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import load_dataset
from toolkit.recipe import DataRecipe

PIL.Image.init()
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv.pop(1)) * 10**6, -1))
if sys.argv[1] == "decode":
    recipe = DataRecipe(source=sys.argv[2], image_size=32, resize=36)
    print(*load_pixels(load_dataset(recipe), "train", Preprocess.from_recipe(recipe), workers=2).names)
else:
    ending.main()
"""
"""`toolkit`, or only the decoding of a training, in a process that may take so many MB more than when it starts."""


def run_limited(more_mb: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, str(more_mb), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert "Traceback" not in done.stderr
    return done


def test_a_picture_that_finds_no_memory_costs_its_own_answer_only(tmp_path: Path) -> None:
    model = save_colour_model(tmp_path / "student.onnx")
    colours = {"0.png": "red", "1.png": "green", "2.png": "blue", "3.png": "red"}
    for name, colour in colours.items():
        size = (8000, 8000) if name in ("1.png", "2.png") else (60, 50)
        Image.new("RGB", size, colour).save(tmp_path / name, **FAST)
    paths = [tmp_path / name for name in colours]
    done = run_limited(200, "predict", model, *paths, "--json")
    assert done.returncode == 1, done
    answers = json.loads(done.stdout)
    remedy = "give a smaller picture, or more memory"
    assert [answer.get("error") for answer in answers] == [
        None,
        *(f"there is not enough memory to decode {path}; {remedy}" for path in paths[1:3]),
        None,
    ]
    assert answers[3]["top"][0]["class"] == "red"
    assert run_limited(2000, "predict", model, *paths).returncode == 0


LARGE_ONES = {
    "png": lambda path, colour: Image.new("RGB", (8000, 8000), colour).save(path, **FAST),
    "webp": lambda path, colour: Image.new("RGB", (6000, 6000), colour).save(path, method=0),
    "jpg": lambda path, colour: Image.new("RGB", (8000, 8000), colour).save(path, progressive=True),
}
"""Pictures that take more than 200 MB and less than 1 GB."""


@pytest.fixture(params=LARGE_ONES)
def set_with_large_pictures(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    for name in ("blue", "red"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (60, 50 + i), name).save(tmp_path / "set" / name / f"{i}.png")
        LARGE_ONES[request.param](tmp_path / "set" / name / f"large.{request.param}", name)
    return tmp_path / "set"


def test_data_names_the_pictures_that_find_no_memory(set_with_large_pictures: Path) -> None:
    unreadable = json.loads(run_limited(200, "data", set_with_large_pictures, "--json").stdout)["unreadable"]
    assert sorted(Path(one["name"]).with_suffix("") for one in unreadable) == [Path("blue/large"), Path("red/large")]
    assert {one["reason"] for one in unreadable} == {"there is not enough memory to decode it"}
    assert json.loads(run_limited(2000, "data", set_with_large_pictures, "--json").stdout)["unreadable"] == []


def test_training_leaves_out_the_pictures_that_find_no_memory(
    set_with_large_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "cache"))
    scarce = run_limited(200, "decode", set_with_large_pictures)
    assert scarce.returncode == 0, scarce
    ample = run_limited(2000, "decode", set_with_large_pictures)
    large = {name for name in ample.stdout.split() if "/large." in name}
    assert large, "a large one is in the training split"
    assert set(ample.stdout.split()) - set(scarce.stdout.split()) == large
    for name in large:
        assert f"left out of train: {name} (there is not enough memory to decode it)" in scarce.stderr
    assert "decoding again" in ample.stderr


def test_the_demo_answers_after_a_picture_that_found_no_memory(tmp_path: Path) -> None:
    import resource

    Image.new("RGB", (9000, 9000), "red").save(tmp_path / "large.png", **FAST)
    server = Server.start([make_model_dir(tmp_path / "pair")], tmp_path / "stderr")
    try:
        client = connect(server.url)
        ordinary = save_picture(tmp_path / "a.png")
        before = ask(client, ordinary)
        pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 200 * 10**6
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        for _ in range(2):
            with pytest.raises(AppError, match=r"not enough memory to decode large\.png; give a smaller"):
                ask(client, tmp_path / "large.png")
            after = ask(client, ordinary)
            assert as_pairs(after["teacher"]) == as_pairs(before["teacher"])
        assert request(server.url, "/healthz").body == b"ok"
    finally:
        server.stop()
