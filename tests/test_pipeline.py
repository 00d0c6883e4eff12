"""The stages end to end, as commands, on small images: their files, refusals and messages."""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import free_port, make_class_folders
from PIL import Image
from toolkit_process import forked_toolkit, start_toolkit, toolkit
from torchvision.models import resnet18

from toolkit import stage_setup
from toolkit.errors import ArtifactError
from toolkit.predict import predict_files, to_json

SMALL = [
    *("--set", "data.image_size=32", "--set", "data.resize=36", "--set", "training.precision=fp32"),
    *("--set", "teacher.epochs=2", "--set", "teacher.batch_size=12", "--set", "teacher.schedule=constant"),
    *("--set", "teacher.learning_rate=0.01"),
    *("--set", "distill.epochs=8", "--set", "distill.batch_size=6", "--set", "student.base=8"),
    *("--set", "bench.samples=10", "--set", "bench.seconds=0.1", "--set", "bench.batch_sizes=[1, 4]"),
]


SMALL_TEACHER = ("--set", "teacher.architecture=depthwise", "--set", "teacher.epochs=1")
"""For tests of the commands and not of their learning."""


@pytest.fixture(scope="session")
def finished(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model directory after `toolkit run`, and the command's output."""
    out = tmp_path_factory.mktemp("models") / "shapes"
    return out, toolkit("run", "--data", class_folders, "--out", out, *SMALL).stdout


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_run_ends_in_a_report_with_all_rows_and_the_control_s_gain(finished: tuple[Path, str]) -> None:
    out, printed = finished
    report = json.loads((out / "report.json").read_text())
    rows = {(row["model"], row["runtime"]) for row in report["rows"]}
    expected = {(model, runtime) for model in ("teacher", "student") for runtime in ("torch", "onnxruntime")}
    assert rows == expected | {("control", "torch")}
    assert report["dataset"]["images"] == 12
    assert report["distillation"]["epochs"] == 8
    assert report["distillation"]["images_seen"] == 8 * 36
    assert f"next: toolkit demo {out}" in printed
    assert all(name in printed for name in ("teacher.onnx", "student.onnx", "report.json"))
    assert [line["stage"] for line in metrics(out)] == ["teacher"] * 2 + ["distill"] * 8 + ["control"] * 8


def test_the_student_learned_and_its_file_says_so_when_read_by_hand(
    finished: tuple[Path, str], class_folders: Path
) -> None:
    """Accuracy by plain Pillow, numpy and onnxruntime, from the file's metadata alone, equals the report's."""
    out, _ = finished
    session = onnxruntime.InferenceSession(str(out / "student.onnx"), providers=["CPUExecutionProvider"])
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    hits = []
    for path in sorted((class_folders / "test").glob("*/*.png")):
        with Image.open(path) as image:
            scaled = image.convert("RGB").resize((43, 36), Image.Resampling.BILINEAR)  # 48×40 → shorter side 36
        left, top = round((43 - 32) / 2), (36 - 32) // 2
        pixels = np.asarray(scaled.crop((left, top, left + 32, top + 32)))[None]
        answer = session.run(["logits"], {"image": pixels})[0].argmax()
        hits.append(classes[answer] == path.parent.name)
    report = json.loads((out / "report.json").read_text())
    row = next(row for row in report["rows"] if (row["model"], row["runtime"]) == ("student", "onnxruntime"))
    assert row["accuracy_top1"] == pytest.approx(np.mean(hits))
    assert np.mean(hits) > 0.6, "three plain colours are easy"


def test_a_plan_says_what_run_would_do_makes_nothing_and_names_the_command(
    finished: tuple[Path, str], class_folders: Path, tmp_path: Path
) -> None:
    flags = ("--data", class_folders, "--out", tmp_path / "m", *SMALL)
    printed = forked_toolkit("plan", *flags, "--minutes", "60").stdout.splitlines()
    assert [line.split(":")[1].strip() for line in printed if line.startswith("plan: ")][:-1] == [
        *("decode", "teacher", "student", "control", "export", "bench"),
    ]
    assert printed[-1] == "next: " + shlex.join(["toolkit", "run", *map(str, flags), "--minutes", "60"])
    assert not (tmp_path / "m").exists()
    planned = json.loads(forked_toolkit("plan", "--data", class_folders, "--out", finished[0], *SMALL, "--json").stdout)
    there = [stage["name"] for stage in planned["stages"] if stage["note"] == "exists"]
    assert there == ["decode", "teacher", "student", "control"]
    assert planned["seconds"] == sum(stage["seconds"] for stage in planned["stages"]) > 0


def test_a_stage_says_its_plan_before_it_begins(finished: tuple[Path, str], class_folders: Path) -> None:
    said = forked_toolkit("distill", "--data", class_folders, "--out", finished[0], *SMALL).stderr
    assert said.index("plan: total 0.0 s") < said.index("is up to date")
    fitting = forked_toolkit("distill", "--data", class_folders, "--out", finished[0], *SMALL, "--minutes", "600")
    assert "minutes: the unchanged recipe fits into 600" in fitting.stderr


def test_seeds_train_pairs_and_the_report_has_mean_and_deviation(
    finished: tuple[Path, str], class_folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "teacher.safetensors").symlink_to(finished[0] / "teacher.safetensors")
    budget = ("--set", "distill.epochs=2", "--set", "distill.teacher_views=2")
    forked_toolkit("distill", "--data", class_folders, "--out", tmp_path, *SMALL, *budget, "--seeds", "2")
    assert sorted(path.name for path in (tmp_path / "seeds" / "1").glob("*.safetensors")) == [
        *("control.safetensors", "student.safetensors"),
    ]
    forked_toolkit("export", "--onnx", tmp_path)
    printed = forked_toolkit("bench", tmp_path).stdout
    report = json.loads((tmp_path / "report.json").read_text())["distillation"]
    assert report["seeds"] == [0, 1]
    gains = [one["gain_top1"] for one in report["per_seed"]]
    assert report["mean"] == pytest.approx(np.mean(gains))
    assert report["std"] == pytest.approx(np.std(gains, ddof=1))
    assert "over 2 seeds" in printed.replace("\n", " ")
    assert "| seed | student top-1 |" in (tmp_path / "report.md").read_text()


def test_an_up_to_date_student_is_kept_and_another_run_s_is_refused(
    finished: tuple[Path, str], class_folders: Path
) -> None:
    out, _ = finished
    before = (out / "student.safetensors").read_bytes()
    again = forked_toolkit("distill", "--data", class_folders, "--out", out, *SMALL)
    assert "student.safetensors is up to date" in again.stderr
    assert re.search(r"^kept .*student\.safetensors \(", again.stdout, re.MULTILINE)
    assert "wrote" not in again.stdout
    refused = forked_toolkit("distill", "--data", class_folders, "--out", out, *SMALL, "--seed", "5", code=1)
    assert "student.safetensors was made from another recipe; choose another directory, or" in refused.stderr
    assert (out / "student.safetensors").read_bytes() == before


def test_other_data_is_refused_too(finished: tuple[Path, str], tmp_path: Path) -> None:
    other = make_class_folders(tmp_path / "other", (6, 3, 3))
    result = forked_toolkit("teacher", "--data", other, "--out", finished[0], *SMALL, code=1)
    assert "teacher.safetensors was made from another dataset" in result.stderr


def test_stages_print_json_alone(finished: tuple[Path, str], class_folders: Path) -> None:
    out, _ = finished
    kept = json.loads(toolkit("teacher", "--data", class_folders, "--out", out, *SMALL, "--json").stdout)
    assert (kept["role"], kept["new"], kept["epochs"]) == ("teacher", False, 2)
    exported = json.loads(toolkit("export", "--onnx", out, "--json").stdout)
    assert [Path(item["path"]).name for item in exported] == ["teacher.onnx", "student.onnx"]
    assert all(item["max_logit_difference"] < 1e-3 and item["agreement"] == 1 for item in exported)
    image = next((class_folders / "test" / "red").glob("*.png"))
    (answer,) = json.loads(toolkit("predict", out, image, "--json").stdout)
    (expected,) = to_json(predict_files(out, [image], provider="cpu"))
    assert (answer["image"], answer["top"]) == (str(image), expected["top"])
    assert {one["class"] for one in answer["top"]} == {"blue", "green", "red"}


def test_smaller_precisions_and_a_triton_repository(finished: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "my model"
    out.mkdir()
    for name in ("teacher.safetensors", "student.safetensors"):
        (out / name).symlink_to(finished[0] / name)
    flags = ("--onnx", "--fp16", "--int8", "--max-drop", "0.5", "--triton", tmp_path / "triton")
    done = forked_toolkit("export", out, *flags)
    files = [f"{role}{precision}.onnx" for role in ("teacher", "student") for precision in ("", ".fp16", ".int8")]
    assert sorted(path.name for path in out.glob("*.onnx")) == sorted(files)
    assert all(str(out / name) in done.stdout for name in files)
    assert done.stdout.count("times as fast as fp32 on this CPU") == 4
    assert (tmp_path / "triton" / "my_model_student_int8" / "1" / "model.onnx").read_bytes() == (
        out / "student.int8.onnx"
    ).read_bytes()
    assert len(list((tmp_path / "triton").glob("*/config.pbtxt"))) == 6
    refused = forked_toolkit("export", out, "--onnx", "--int8", "--set", "export.max_drop=2", code=1)
    assert "export.max_drop = 2 is not allowed" in refused.stderr
    alone = forked_toolkit(
        "export", out / "student.safetensors", "--onnx", "--int8", "--out", tmp_path / "alone", code=1
    )
    assert "int8 is calibrated on training images" in alone.stderr


def test_a_stage_without_its_input_names_the_command(tmp_path: Path, finished: tuple[Path, str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for command in (("export", "--onnx", empty), ("bench", empty)):
        assert "make it with: toolkit distill --out" in forked_toolkit(*command, code=1).stderr
    no_onnx = tmp_path / "no_onnx"
    no_onnx.mkdir()
    for name in ("teacher.safetensors", "student.safetensors"):
        (no_onnx / name).symlink_to(finished[0] / name)
    for command in (("bench", no_onnx), ("demo", no_onnx, "--port", str(free_port())), ("predict", no_onnx, "x.png")):
        assert "toolkit export --onnx" in forked_toolkit(*command, code=1).stderr


class TestImportedTeacher:
    def test_a_plain_state_dict_teaches(self, tmp_path: Path, class_folders: Path) -> None:
        torch.manual_seed(0)
        torch.save(resnet18(num_classes=3).state_dict(), tmp_path / "teacher.bin")
        result = forked_toolkit(
            "teacher", "--data", class_folders, "--out", tmp_path / "m", "--weights", tmp_path / "teacher.bin", *SMALL
        )
        assert "imported" in result.stderr
        assert (result.stderr + result.stdout).count("validation accuracy") == 1
        assert not (tmp_path / "m" / "metrics.jsonl").exists(), "an imported teacher is not trained"
        forked_toolkit("distill", "--data", class_folders, "--out", tmp_path / "m", *SMALL, "--set", "distill.epochs=1")

    def test_class_counts_that_differ_are_both_named(self, tmp_path: Path, class_folders: Path) -> None:
        torch.save(resnet18(num_classes=11).state_dict(), tmp_path / "eleven.bin")
        result = forked_toolkit(
            "teacher", "--data", class_folders, "--out", tmp_path / "m", "--weights", tmp_path / "eleven.bin", code=1
        )
        last = result.stderr.strip().splitlines()[-1]
        assert "11" in last
        assert "3" in last
        assert list((tmp_path / "m").iterdir()) == []

    def test_imagenet_weights_are_fetched_and_fitted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchvision.models import ResNet18_Weights

        from toolkit.distill.teacher import _new_network
        from toolkit.recipe import Recipe

        published = resnet18(num_classes=1000).state_dict()
        monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *_, **__: published)
        recipe = Recipe().with_overrides(["teacher.weights=imagenet", "data.image_size=32", "data.mean=[0, 0, 0]"])
        teacher = _new_network(recipe, 7)
        own = teacher.network.state_dict()
        assert torch.equal(own["layer4.1.conv2.weight"], published["layer4.1.conv2.weight"])
        assert own["fc.weight"].shape == (7, 512)
        assert teacher.mean == (0.485, 0.456, 0.406), "their normalisation goes with them"

    def test_no_network_says_where_to_put_the_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from urllib.error import URLError

        from torchvision.models import ResNet18_Weights

        from toolkit.distill.teacher import _new_network
        from toolkit.errors import WeightsError
        from toolkit.recipe import Recipe

        def offline(*_: object, **__: object) -> None:
            raise URLError("no route")

        monkeypatch.setattr(ResNet18_Weights, "get_state_dict", offline)
        recipe = Recipe().with_overrides(["teacher.weights=imagenet", "data.image_size=32"])
        with pytest.raises(WeightsError, match=r"cannot download .*resnet18.*put that file into .*checkpoints"):
            _new_network(recipe, 7)


def test_a_student_whose_teacher_knows_other_classes_is_refused(finished: tuple[Path, str], tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "renamed", (6, 3, 3))
    for split in ("train", "val", "test"):
        (data / split / "red").rename(data / split / "scarlet")
    out = tmp_path / "m"
    out.mkdir()
    (out / "teacher.safetensors").symlink_to(finished[0] / "teacher.safetensors")
    result = forked_toolkit("distill", "--data", data, "--out", out, *SMALL, code=1)
    assert "class 2 of teacher.safetensors is 'red', of renamed 'scarlet'" in result.stderr


def test_a_broken_image_is_named_and_left_out_or_refused(tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "data", (6, 3, 3))
    (data / "train" / "red" / "broken.png").write_bytes(b"not a picture")
    budget = (*SMALL_TEACHER, "--set", "distill.epochs=1")
    result = forked_toolkit("distill", "--data", data, "--out", tmp_path / "m", *SMALL, *budget)
    assert "train/red/broken.png" in result.stderr
    strict = forked_toolkit("distill", "--data", data, "--out", tmp_path / "n", *SMALL, *budget, "--strict", code=1)
    assert "train/red/broken.png" in strict.stderr


def test_the_next_command_runs_as_it_is_printed(tmp_path: Path) -> None:
    """Through a shell, with spaces in every path: teacher → distill → export, settings carried along."""
    data = make_class_folders(tmp_path / "my data", (6, 3, 3))
    budget = (*SMALL_TEACHER, "--set", "distill.epochs=1")
    printed = forked_toolkit("teacher", "--data", data, "--out", tmp_path / "my model", *SMALL, *budget).stdout
    commands = []
    for _ in range(2):
        command = printed.split("next: toolkit ")[1].strip()
        commands.append(command.split()[0])
        shell = ["sh", "-c", f'"{sys.executable}" -m toolkit {command}']
        done = subprocess.run(shell, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    assert commands == ["distill", "export"]
    lines = metrics(tmp_path / "my model")
    assert [(line["stage"], line["image_size"]) for line in lines] == [("teacher", 32), ("distill", 32)]


def test_distill_in_a_directory_with_a_teacher_alone_takes_the_teacher_s_recipe(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    (tmp_path / "teacher.safetensors").symlink_to(finished[0] / "teacher.safetensors")
    forked_toolkit("distill", "--out", tmp_path, "--set", "distill.epochs=1")
    assert [(line["stage"], line["image_size"]) for line in metrics(tmp_path)] == [("distill", 32)]


def test_ctrl_c_saves_says_how_to_go_on_and_leaves_nothing_half_written(class_folders: Path, tmp_path: Path) -> None:
    arguments = ["distill", "--data", str(class_folders), "--out", str(tmp_path / "m"), *SMALL, *SMALL_TEACHER]
    process = start_toolkit(*arguments, "--set", "teacher.epochs=1000")
    assert process.stderr is not None
    said = ""
    while "teacher    1/1000" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    try:
        said += process.communicate(timeout=600)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("stopped in teacher, ")
    command = shlex.join(["toolkit", *arguments, "--set", "teacher.epochs=1000", "--resume"])
    assert last.endswith(f", and saved; go on with: {command}")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["checkpoint.pt", "metrics.jsonl"]


def test_little_memory_is_said_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(stage_setup, "memory_bytes", lambda: 256 * 2**20)
    with pytest.raises(ArtifactError, match="there is no model directory"):
        stage_setup.prepare_finished(tmp_path / "none", None, None, [])
    assert capsys.readouterr().err.startswith("warning: 0.2 GiB of memory for this process; ")


def test_a_forgotten_volume_is_said_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(stage_setup, "missing_volume", lambda path: "/app/models")
    stage_setup.prepare_training(None, "fashion-mnist", tmp_path / "m", [])
    expected = "lies in this container and is deleted with it; to keep it, mount a volume: docker run -v kd-models:"
    assert f"warning: {tmp_path / 'm'} {expected}/app/models" in " ".join(capsys.readouterr().err.split())
