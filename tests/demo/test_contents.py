"""The contents of a model directory for the page, and the command that makes a missing part."""

import base64
import io
import json
import re
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_samples import first_report, make_report

from toolkit.bench.measure.images import BenchImages
from toolkit.bench.report.examples import Examples, write_examples
from toolkit.data.dataset import Dataset, Images
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import Preprocess
from toolkit.demo.contents import THUMBNAIL, read_contents, show_pixels
from toolkit.errors import ArtifactError
from toolkit.modeldir import ModelDir

REPORT: dict[str, Any] = first_report(make_report()) | {
    "created": "2026-01-02T03:04:05+00:00",
    "hardware": {"cpu": "a processor", "cores": 2, "memory_gib": 8.0, "gpu": None, "driver": None},
    "dataset": {"name": "colours", "split": "test", "images": 6, "sha256": "ab" * 32},
    "distillation": {"mean": 0.0125, "seeds": [0, 1]},
    "verdict": "Ship it.",
}
"""As the first version of the toolkit wrote it."""


def fill(directory: ModelDir) -> Examples:
    """Six pictures of 200×180 px, the two networks differing on the last two; a report and one plot."""
    images = np.random.default_rng(0).integers(0, 256, (6, 180, 200, 3), dtype=np.uint8)
    pixels = Pixels(
        tuple("abcdef"),
        np.arange(6) % 3,
        np.full(6, 180),
        np.full(6, 200),
        images.reshape(-1),
        np.arange(6) * 180 * 200 * 3,
        Preprocess(160, 180, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    )
    teacher, student = np.eye(3)[np.arange(6) % 3], np.eye(3)[[0, 1, 2, 0, 2, 1]]
    split = Images.from_array("test", images, np.arange(6) % 3)
    dataset = Dataset("colours", ("red", "green", "blue"), split, split, split, sha256="ab" * 32)
    write_examples(directory.examples, BenchImages.choose(dataset, pixels, 0), teacher, student, 24)
    directory.report_json.write_text(json.dumps(REPORT))
    Image.new("RGB", (30, 20)).save(directory.plot("accuracy_latency"))
    return Examples.read(directory.examples)


def decode(url: str) -> Image.Image:
    head, _, content = url.partition(",")
    assert head in ("data:image/png;base64", "data:image/webp;base64")
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.fixture
def directory(tmp_path: Path) -> ModelDir:
    (tmp_path / "my model").mkdir()
    return ModelDir(tmp_path / "my model")


def test_an_empty_directory_names_the_command(directory: ModelDir) -> None:
    contents = read_contents(directory)
    command = f"toolkit bench '{directory.path}'"
    assert contents.examples == contents.report == {"command": command}
    assert contents.plots == {"command": command, "pictures": [], "complete": False}
    assert contents.picture("examples", 0) is None


def test_test_images_come_with_labels_and_answers(directory: ModelDir) -> None:
    kept = fill(directory)
    contents = read_contents(directory)
    shown = contents.examples
    assert (shown["dataset"], shown["images"], shown["differing"]) == ("colours", 6, 2)
    for kind in ("examples", "disagreements"):
        for place, (one, tile) in enumerate(zip(getattr(kept, kind), shown[kind], strict=True)):
            assert asdict(one).items() <= tile.items()
            full = contents.picture(kind, place)
            assert full is not None
            assert max(decode(tile["src"]).size) == min(THUMBNAIL, max(full.size))
    for place in (-1, len(kept.examples)):
        assert contents.picture("examples", place) is None


def test_the_report_in_short(directory: ModelDir) -> None:
    fill(directory)
    report = read_contents(directory).report
    assert report["rows"] == REPORT["rows"]
    assert (report["dataset"], report["images"], report["date"]) == ("colours", 6, "2026-01-02")
    assert (report["gain"], report["seeds"]) == (0.0125, 2)
    assert (report["hardware"], report["cores"]) == ("a processor", 2)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"rows": 1}'),
        *(
            json.dumps(REPORT | change)
            for change in ({"dataset": None}, {"rows": "abc"}, {"rows": [1, {}]}, {"verdict": None})
        ),
    ],
)
def test_a_damaged_report_is_reported_and_stops_nothing(
    directory: ModelDir, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(directory)
    directory.report_json.write_text(text)
    contents = read_contents(directory)
    assert "report.json cannot be read" in contents.report["problem"]
    assert "rows" not in contents.report
    printed = " ".join(capsys.readouterr().err.split())
    assert re.search(r"warning: .*report\.json cannot be read .*; make it again with: toolkit bench", printed)
    assert contents.examples["differing"] == 2


def test_a_damaged_picture_is_reported_and_stops_nothing(directory: ModelDir) -> None:
    kept = fill(directory)
    with zipfile.ZipFile(directory.examples) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    last = kept.disagreements[-1].file
    for damaged in (content[last][: len(content[last]) // 2], None):
        with zipfile.ZipFile(directory.examples, "w") as archive:
            for name, body in (content | {last: damaged}).items():
                if body is not None:
                    archive.writestr(name, body)
        contents = read_contents(directory)
        assert f"{last}, cannot be read" in contents.examples["problem"]
        assert contents.report["verdict"] == "Ship it."
        with pytest.raises(ArtifactError, match="make it again with: toolkit bench"):
            contents.picture("disagreements", 1)


def test_a_report_without_distillation_has_no_gain(directory: ModelDir) -> None:
    report: dict[str, Any] = REPORT | {"distillation": None}
    directory.report_json.write_text(json.dumps(report))
    assert read_contents(directory).report["gain"] is None


def test_plots_are_those_that_are_there(directory: ModelDir) -> None:
    fill(directory)
    (picture,) = read_contents(directory).plots["pictures"]
    assert picture["name"] == "accuracy_latency"
    assert decode(picture["src"]).size == (30, 20)


def test_pixels_come_through_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(decode(show_pixels(pixels))), pixels)
