"""Files opened by older releases of onnxruntime, each in an environment of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from export_samples import make_pixels, save_weights
from tiny_families import SIDE, make_family

from toolkit.export.export import ExportOptions, export_onnx
from toolkit.graphs.build import build_graph, set_metadata
from toolkit.graphs.half import halve
from toolkit.networks.classifier import Classifier
from toolkit.recipe import Recipe
from toolkit.sessions import tiny_model
from toolkit.sessions.session import open_session

RELEASES = {20: "1.17.3", 18: "1.15.1"}
"""Opset → the oldest release that opens its files, as docs/export.md has them; of both there are wheels up to 3.11."""

NUMPY = "numpy==1.26.4"
NEWEST_PYTHON = (3, 11)
"""for which those releases have wheels"""

ANSWER = """
import sys
import numpy, onnxruntime
assert onnxruntime.__version__ == sys.argv[1]
for path in sys.argv[2:]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = numpy.load(path + ".images.npy")
    numpy.save(path + ".logits.npy", session.run([session.get_outputs()[0].name], {"image": images})[0])
"""


def find_python() -> str:
    if sys.version_info[:2] <= NEWEST_PYTHON:
        return sys.executable
    found = shutil.which("python{}.{}".format(*NEWEST_PYTHON))
    return found or pytest.skip("needs Python 3.11 beside this one")


@pytest.fixture(scope="module", params=RELEASES)
def opset(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def packages(opset: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that release and a numpy for it; they come from PyPI."""
    folder = tmp_path_factory.mktemp("older")
    wanted = ("--no-deps", "--only-binary=:all:", f"onnxruntime=={RELEASES[opset]}", NUMPY)
    command = [find_python(), "-m", "pip", "install", "--quiet", "--target", str(folder), *wanted]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if installed.returncode:
        pytest.skip(f"pip cannot install them here: {installed.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.fixture(scope="module")
def files(opset: int, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All three precisions of a student, a transformer in two, and the classifier that providers are tried with.

    Before 1.17 onnxruntime has no layer normalisation in float16 that goes with opset 18.
    """
    folder = tmp_path_factory.mktemp("files")
    recipe = Recipe().with_overrides([f"export.opset={opset}", "export.max_drop=1.0", "export.calibration_images=8"])
    pixels = make_pixels(np.zeros(8))
    options = ExportOptions(recipe, pixels, pixels, ("fp16", "int8"))
    weights = save_weights(folder / "student.safetensors", "depthwise")
    made = [result.path for result in export_onnx(weights, folder / "student.onnx", options)]
    swin = build_graph(Classifier(make_family("swin"), (0.5,) * 3, (0.5,) * 3).eval(), SIDE, opset)
    set_metadata(swin, {"role": "teacher"})
    contents = {"swin": swin} | ({"swin.fp16": halve(swin)} if opset > 18 else {})
    contents = {name: model.SerializeToString() for name, model in contents.items()} | {"tiny": tiny_model.build()}
    for name, content in contents.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(content)
        made.append(path)
    return made


@pytest.mark.slow
def test_an_older_release_answers_as_this_one(opset: int, packages: Path, files: list[Path]) -> None:
    expected = {}
    for path in files:
        session = open_session(path, 1)
        (image,) = session.get_inputs()
        images = np.random.default_rng(0).integers(0, 256, (3, *image.shape[1:]), dtype=np.uint8)
        np.save(f"{path}.images.npy", images)
        (expected[path],) = session.run([session.get_outputs()[0].name], {"image": images})
    command = [find_python(), "-S", "-P", "-c", ANSWER, RELEASES[opset], *map(str, files)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(packages)}, check=True, timeout=300)
    for path in files:
        logits = np.load(f"{path}.logits.npy")
        half_or_less = ".fp16" in path.name or ".int8" in path.name
        atol = (0.02 if half_or_less else 1e-5) * max(1.0, float(np.abs(expected[path]).max()))
        np.testing.assert_allclose(logits, expected[path], rtol=0, atol=atol, err_msg=path.name)
