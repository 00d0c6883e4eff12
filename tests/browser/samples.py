"""The samples of the browser tests: model directories with answers known by hand, good files and bad ones."""

import io
import json
from pathlib import Path

import numpy as np
from bench.report_samples import make_report, make_row
from conftest import make_image
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tiny_onnx import COLOURS, save_colour_model

from toolkit.bench.measure.images import BenchImages
from toolkit.bench.report.examples import write_examples
from toolkit.data.dataset import Dataset, Images
from toolkit.data.pixels import Pixels
from toolkit.demo.contents import PLOTS
from toolkit.modeldir import FilePrecision, ModelDir, Role
from toolkit.runtimes.onnxruntime import OnnxPredictor

LONG = "a class with a name that is much too long for its column, and goes on and on"
CLASSES = ("red", "green", "blue", "<b>bold</b>", "cyan", LONG, "grey")
MANY_CLASSES = tuple(f"class {i}" for i in range(14))
TEST_IMAGES = 60
KEPT_DISAGREEMENTS = 9


def make_full_dir(path: Path) -> ModelDir:
    """All that a directory can have: three precisions that answer differently, test images, a report and its plots.

    The teacher knows its colours; the students take blue for class 3.
    """
    directory = ModelDir(path)
    students: tuple[tuple[Role, FilePrecision, int, int], ...] = (
        ("teacher", "fp32", 2, 0), ("student", "fp32", 3, 1), ("student", "fp16", 3, 2), ("student", "int8", 3, 3),
    )  # fmt: skip
    for role, precision, blue, seed in students:
        save_colour_model(directory.onnx(role, precision), CLASSES, weight=_weights(len(CLASSES), blue, seed))
    rows = [
        make_row("teacher", 0.53, 0.9079, 44_700_000),
        make_row("student", 0.15, 0.9031, 1_030_000),
        make_row("student", 0.11, 0.8992, 300_000, precision="int8"),
    ]
    directory.report_json.write_text(
        json.dumps(make_report(rows, classes=CLASSES, name="colours").to_json()), encoding="utf-8"
    )
    for name in PLOTS:
        plot = Image.new("RGB", (640, 480), "white")
        ImageDraw.Draw(plot).text((20, 20), name, "black")
        plot.save(directory.plot(name))
    _write_test_images(directory)
    return directory


def make_bare_dir(path: Path) -> ModelDir:
    """Teacher and student and nothing else, with more classes than are drawn."""
    directory = ModelDir(path)
    for role, blue, seed in (("teacher", 2, 4), ("student", 2, 5)):
        weight = _weights(len(MANY_CLASSES), blue, seed)
        save_colour_model(directory.onnx(role), MANY_CLASSES, weight=weight)  # type: ignore[arg-type]
    return directory


def save_picture(folder: Path, colour: str) -> Path:
    """A PNG of noise, 70×50 px, that is mostly red, green or blue."""
    path = folder / f"{colour}.png"
    make_image(COLOURS.index(colour), 0, (70, 50)).save(path)
    return path


def make_damaged() -> bytes:
    """The first half of a JPEG file."""
    stream = io.BytesIO()
    make_image(0, 0, (300, 200)).save(stream, "JPEG")
    return stream.getvalue()[: len(stream.getvalue()) // 2]


def _weights(classes: int, blue: int, seed: int) -> NDArray[np.float64]:
    """(3, C): red speaks for class 0, green for 1, blue for `blue`; all the others a little."""
    weight = np.random.default_rng(seed).uniform(0, 4, (3, classes))
    weight[[0, 1, 2], [0, 1, blue]] += 8
    return weight


def _write_test_images(directory: ModelDir) -> None:
    """The images that `toolkit bench` keeps of a test split, here mostly red, green or blue."""
    teacher, student = (OnnxPredictor(directory.onnx(role), "cpu") for role in ("teacher", "student"))
    side = teacher.preprocess.resize
    images = np.stack([np.asarray(make_image(seed, seed, (side, side))) for seed in range(TEST_IMAGES)])
    sides = np.full(TEST_IMAGES, side)
    pixels = Pixels(
        tuple(f"{seed}.png" for seed in range(TEST_IMAGES)),
        np.arange(TEST_IMAGES) % 3,
        sides,
        sides,
        images.reshape(-1),
        np.arange(TEST_IMAGES) * side * side * 3,
        teacher.preprocess,
    )
    everything = np.arange(TEST_IMAGES)
    seen = pixels.centre(everything)
    nothing = Images.from_array("none", images[:0], np.arange(0))  # examples are made of pixels alone
    dataset = Dataset("colours", CLASSES, nothing, nothing, nothing, sha256="ab" * 32)
    write_examples(
        *(directory.examples, BenchImages(dataset, pixels, everything)),
        *(teacher.logits(seen), student.logits(seen), KEPT_DISAGREEMENTS),
    )
