"""Which files become rows, in which runtime, in which order."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from bench_samples import PREPROCESS, RECIPE, save_model_dir, save_role
from cuda_sessions import CUDA, OnCuda, pretend_cuda

from toolkit.bench.measure import rows
from toolkit.bench.measure.rows import Row, _list_files, answer_images, find_remarks, find_stale, open_rows
from toolkit.data.dataset import Images
from toolkit.data.pixels import Pixels
from toolkit.errors import ArtifactError, RecipeError
from toolkit.machine.limits import available_cores
from toolkit.modeldir import ModelDir
from toolkit.runtimes.onnxruntime import OnnxPredictor


def names(rows: list[Row]) -> list[str]:
    return [row.name for row in rows]


def test_every_precision_that_is_there_becomes_a_row(tmp_path: Path) -> None:
    model_dir = save_model_dir(tmp_path)
    save_role(model_dir, "student", ("fp32", "fp16", "int8"))
    save_role(model_dir, "control")
    rows = open_rows(model_dir, "cpu", "cpu")
    assert names(rows) == [
        "teacher fp32 (torch)",
        "teacher fp32 (onnxruntime)",
        "student fp32 (torch)",
        "student fp32 (onnxruntime)",
        "student fp16 (onnxruntime)",
        "student int8 (onnxruntime)",
        "control fp32 (torch)",
        "control fp32 (onnxruntime)",
    ]
    assert rows[5].path == tmp_path / "student.int8.onnx"
    assert rows[5].describe().precision == "int8"
    assert {row.place for row in rows} == {"cpu"}
    assert {row.describe().threads for row in rows} == {available_cores()}


def test_the_recipe_chooses_the_runtimes_and_their_order(tmp_path: Path) -> None:
    model_dir = save_model_dir(tmp_path)
    rows = open_rows(model_dir, "cpu", "cpu", ("onnxruntime", "torch", "onnxruntime"))
    assert [row.predictor.runtime for row in rows] == ["onnxruntime", "torch"] * 2
    assert names(open_rows(model_dir, "cpu", "cpu", ("onnxruntime",))) == [
        "teacher fp32 (onnxruntime)",
        "student fp32 (onnxruntime)",
    ]


def test_torch_alone_needs_no_onnx_file(tmp_path: Path) -> None:
    model_dir = save_model_dir(tmp_path)
    model_dir.onnx("student").unlink()
    assert names(open_rows(model_dir, "cpu", "cpu", ("torch",))) == ["teacher fp32 (torch)", "student fp32 (torch)"]
    with pytest.raises(ArtifactError, match=r"has no student\.onnx; make it with: toolkit export --onnx"):
        open_rows(model_dir, "cpu", "cpu", ("onnxruntime",))


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_reads_the_same_files(tmp_path: Path) -> None:
    model_dir = save_model_dir(tmp_path)
    save_role(model_dir, "student", ("fp32", "int8"))
    rows = open_rows(model_dir, "cpu", "cpu", ("openvino",))
    assert names(rows) == ["teacher fp32 (openvino)", "student fp32 (openvino)", "student int8 (openvino)"]
    assert {(row.predictor.provider, row.predictor.threads) for row in rows} == {("CPU", available_cores())}


def test_on_a_gpu_torch_also_computes_in_fp16(tmp_path: Path) -> None:
    weights = tmp_path / "student.safetensors"
    runtimes = RECIPE.with_overrides(["bench.runtimes=['torch', 'torch.compile']"]).bench.runtimes
    assert list(_list_files(ModelDir(tmp_path), "student", "cuda:0", runtimes, False)) == [
        ("torch", "fp32", weights),
        ("torch", "fp16", weights),
        ("torch.compile", "fp32", weights),
    ]
    on_cpu = _list_files(ModelDir(tmp_path), "student", "cpu", runtimes, False)
    assert [precision for _, precision, _ in on_cpu] == ["fp32", "fp32"]


def test_onnxruntime_on_a_gpu_is_also_measured_without_copies_and_not_in_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = save_model_dir(tmp_path)
    save_role(model_dir, "student", ("fp32", "fp16", "int8"))
    fake = OnCuda()
    pretend_cuda(monkeypatch, fake)
    rows = open_rows(model_dir, "cpu", "auto:1", ("onnxruntime",))
    assert names(rows) == [
        "teacher fp32 (onnxruntime)",
        "teacher fp32 (onnxruntime.io_binding)",
        "student fp32 (onnxruntime)",
        "student fp32 (onnxruntime.io_binding)",
        "student fp16 (onnxruntime)",
        "student fp16 (onnxruntime.io_binding)",
    ]
    assert {(row.place, row.describe().provider) for row in rows} == {("auto:1", f"{CUDA}:1")}
    assert {settings["device_id"] for settings in fake.opened} == {"1"}
    assert find_remarks(rows, model_dir) == [
        "onnxruntime has no row for student.int8.onnx: its CUDA provider computes int8 files in float; measure them"
        " with provider cpu"
    ]


def test_onnxruntime_runs_on_the_gpu_that_torch_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[str] = []

    def remember(runtime: str, path: Path, place: str, threads: int, precision: str) -> OnnxPredictor:
        places.append(place)
        return OnnxPredictor(path.with_suffix(".onnx"), "cpu", threads)

    pretend_cuda(monkeypatch, OnCuda())
    monkeypatch.setattr(rows, "open_predictor", remember)
    open_rows(save_model_dir(tmp_path), "cuda:1", "cuda", ("torch", "onnxruntime"))
    assert places == ["cuda:1"] * 4 * 2


def test_without_a_gpu_nothing_is_left_out(tmp_path: Path) -> None:
    model_dir = save_model_dir(tmp_path)
    save_role(model_dir, "student", ("fp32", "int8"))
    assert find_remarks(open_rows(model_dir, "cpu", "cpu"), model_dir) == []


def test_a_graph_that_does_not_hold_is_remarked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_dir = save_model_dir(tmp_path)
    pretend_cuda(monkeypatch, OnCuda(error="CUDA failure 900: operation not permitted"))
    remarks = find_remarks(open_rows(model_dir, "cpu", "cuda", ("onnxruntime",)), model_dir)
    assert [remark.split(" runs without a CUDA graph")[0] for remark in remarks] == ["teacher.onnx", "student.onnx"]


def test_an_unknown_runtime_is_refused_with_those_there_are() -> None:
    for override in ("bench.runtimes=['tflite']", "bench.runtimes=['torch', 'tflite']"):
        with pytest.raises(RecipeError) as caught:
            RECIPE.with_overrides([override])
        expected = "is not allowed; input should be 'torch', 'torch.compile', 'onnxruntime' or 'openvino'"
        assert expected in str(caught.value)
    with pytest.raises(RecipeError, match=r"bench\.runtimes = \[\] is not allowed"):
        RECIPE.with_overrides(["bench.runtimes=[]"])


def test_a_file_of_other_weights_is_named(tmp_path: Path) -> None:
    model_dir = save_model_dir(tmp_path)
    model = onnx.load(str(model_dir.onnx("student")))
    model.metadata_props.add(key="weights_sha256", value="f" * 64)
    onnx.save(model, str(model_dir.onnx("student", "int8")))
    (sentence,) = find_stale(open_rows(model_dir, "cpu", "cpu"), model_dir)
    assert sentence == (
        "student.int8.onnx was exported from other weights than student.safetensors has now; export it again with"
        " toolkit export --onnx --force"
    )


def test_a_predictor_answers_all_images_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LARGEST_BATCH", 64)
    noise = np.random.default_rng(0).integers(0, 256, (150, 32, 32, 3), dtype=np.uint8)
    names, sizes = Images.from_array("test", noise, np.zeros(150, np.int64)).names, np.full(150, 32)
    starts = np.arange(150) * 32 * 32 * 3
    pixels = Pixels(names, np.zeros(150, np.int64), sizes, sizes, noise.reshape(-1), starts, PREPROCESS)

    class Summing:
        preprocess = PREPROCESS

        def logits(self, images: np.ndarray) -> np.ndarray:
            return images.reshape(len(images), -1).sum(1, keepdims=True).astype(np.float32)

    done: list[int] = []
    answer = answer_images(Summing(), pixels, np.arange(1, 150), done.append)  # type: ignore[arg-type]
    assert done == [64, 64, 21]
    np.testing.assert_array_equal(answer[:, 0], noise.reshape(150, -1).sum(1)[1:].astype(np.float32))
