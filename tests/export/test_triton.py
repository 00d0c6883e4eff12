"""Triton model repositories: Triton's own schema reads the file's facts from the configuration."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tiny_onnx import save_colour_model

from toolkit.errors import ArtifactError
from toolkit.export.triton import render_config, write_triton_model

CLASSES = ("crème brûlée", 'a "quoted"\nclass', "blue")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return save_colour_model(tmp_path / "student.onnx", CLASSES)


def parse(text: str) -> Any:
    """By the schema that Triton publishes with its client."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    return text_format.Parse(text, schema.ModelConfig())


def test_tritons_schema_reads_what_the_file_says(exported: Path) -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    config = parse(render_config("mine_student", onnx.load(exported)))
    assert (config.name, config.backend) == ("mine_student", "onnxruntime")
    assert config.max_batch_size == 64
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("image", schema.TYPE_UINT8, [32, 32, 3])]
    assert [(t.name, t.data_type, list(t.dims), t.label_filename) for t in config.output] == [
        ("logits", schema.TYPE_FP32, [3], ""),
        ("probabilities", schema.TYPE_FP32, [3], "labels.txt"),
    ]
    assert config.HasField("dynamic_batching")
    assert max(config.dynamic_batching.preferred_batch_size) <= config.max_batch_size
    assert config.dynamic_batching.max_queue_delay_microseconds == 1000
    assert config.version_policy.latest.num_versions == 1


def test_the_configuration_is_balanced_text(exported: Path) -> None:
    """Also without Triton's schema: every block is closed, every field stands once."""
    text = render_config("mine_student", onnx.load(exported))
    assert text.count("{") == text.count("}")
    assert text.count("[") == text.count("]")
    top = re.findall(r"^(\w+)[: ]", text, re.MULTILINE)
    assert sorted(top) == sorted(
        ["name", "backend", "max_batch_size", "input", "output", "output", "dynamic_batching", "version_policy"]
    )


def test_the_repository(exported: Path, tmp_path: Path) -> None:
    folder = write_triton_model(tmp_path / "repo", "food 11.v2_student", exported)
    assert folder == tmp_path / "repo" / "food_11_v2_student"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["1/model.onnx", "config.pbtxt", "labels.txt"]
    assert (folder / "1" / "model.onnx").read_bytes() == exported.read_bytes()
    assert (folder / "labels.txt").read_text("utf-8").splitlines() == ["crème brûlée", 'a "quoted" class', "blue"]
    assert 'name: "food_11_v2_student"' in (folder / "config.pbtxt").read_text()
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(["logits"], {"image": np.zeros((5, 32, 32, 3), np.uint8)})[0].shape == (5, 3)


def test_another_model_is_not_overwritten(exported: Path, tmp_path: Path) -> None:
    write_triton_model(tmp_path / "repo", "mine", exported)
    write_triton_model(tmp_path / "repo", "mine", exported)  # the same again is no harm
    other = save_colour_model(tmp_path / "other.onnx", ("x", "y", "z"))
    with pytest.raises(ArtifactError, match=r"model\.onnx exists and is another model; replace it with --force"):
        write_triton_model(tmp_path / "repo", "mine", other)
    assert (tmp_path / "repo" / "mine" / "1" / "model.onnx").read_bytes() == exported.read_bytes()
    folder = write_triton_model(tmp_path / "repo", "mine", other, force=True)
    assert (folder / "labels.txt").read_text().split() == ["x", "y", "z"]
