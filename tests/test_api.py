"""The face for Python: the commands' results and errors, typed, and a process that is afterwards as it was before."""

import inspect
import io
import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_class_folders, make_image, make_png
from PIL import Image
from tiny_onnx import COLOURS, save_colour_model

import toolkit
from toolkit import console
from toolkit.api.process import leaving_torch
from toolkit.api.workspace import Workspace, flatten
from toolkit.distill.metrics import read_metrics
from toolkit.predict import predict_files

SMALL: dict[str, Any] = {
    "data": {"image_size": 32, "resize": 36},
    "teacher": {"architecture": "depthwise", "epochs": 2, "batch_size": 12},
    "student": {"base": 4},
    "distill": {"epochs": 3, "batch_size": 12, "precision": "fp32"},
    "bench": {"samples": 10, "seconds": 0.2, "batch_sizes": [1], "runtimes": ["torch"]},
}


IN_ONNXRUNTIME = SMALL["bench"] | {"runtimes": ["onnxruntime"]}

NO_PAIR = SMALL | {"distill": SMALL["distill"] | {"teacher_views": 0}}
"""Student and control one after the other, as with a live teacher."""


def open_small(path: Path, data: Path, **options: Any) -> toolkit.Workspace:
    options = {"settings": SMALL, "device": "cpu", "quiet": True} | options
    return toolkit.open(path, data=data, **options)


def process_state() -> dict[str, Any]:
    return {
        "torch's threads": torch.get_num_threads(),
        "torch's random numbers": torch.get_rng_state().tolist(),
        "Python's": random.getstate(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP)],
        "environment": dict(os.environ),
        "imports": [*sys.path],
        "warnings": [*warnings.filters],
        "processes": multiprocessing.get_start_method(allow_none=True),
        "output": (sys.stdout, sys.stderr, console.err.quiet, logging.root.manager.disable),
    }


STATE = f"""
import logging, multiprocessing, os, random, signal, sys, warnings
from typing import Any
import torch
from toolkit import console
{inspect.getsource(process_state)}
"""
"""The code of `process_state`, for a new process."""


@pytest.fixture(scope="module")
def finished(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[toolkit.Workspace, dict[str, Any]]:
    """A workspace after `run`; the epochs of `on_epoch`, the report, and the process before and after."""
    seen: list[toolkit.EpochMetrics] = []
    threads = []

    def note(metrics: toolkit.EpochMetrics) -> None:
        seen.append(metrics)
        threads.append(torch.get_num_threads())

    before = process_state()
    workspace = open_small(tmp_path_factory.mktemp("models") / "shapes", class_folders, threads=2, settings=NO_PAIR)
    report = workspace.run(on_epoch=note)
    return workspace, {"report": report, "epochs": seen, "threads": threads, "process": (before, process_state())}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_colour_model(tmp_path / "colour" / "student.onnx")


def in_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestImport:
    def test_nothing_heavy_comes_with_it_and_every_name_is_there(self) -> None:
        loaded = in_python("import sys, toolkit; print(sorted(m for m in sys.modules if m.startswith('toolkit')))")
        assert loaded == "['toolkit']"
        assert [name for name in toolkit.__all__ if getattr(toolkit, name) is None] == []
        assert set(toolkit.__all__) <= set(dir(toolkit))

    def test_an_unknown_name_is_no_attribute(self) -> None:
        with pytest.raises(AttributeError, match="module 'toolkit' has no attribute 'opne'"):
            toolkit.opne  # noqa: B018

    def test_an_onnx_file_answers_without_torch(self, model: Path) -> None:
        code = f"import sys, toolkit; toolkit.load({str(model)!r}, provider='cpu'); print('torch' in sys.modules)"
        assert in_python(code) == "False"


class TestSettings:
    def test_nested_and_dotted_ones_are_the_same(self) -> None:
        assert flatten({"distill": {"epochs": 3}, "student.base": 4}) == {"distill.epochs": 3, "student.base": 4}

    @pytest.mark.parametrize("text", ["true", "3", "a = 1", 'say "hi"', "C:\\new\\table", "naïve 🙂\n\x7f", "", "[1]"])
    def test_any_text_arrives_as_it_is(self, text: str, tmp_path: Path) -> None:
        opened = toolkit.open(tmp_path, data="fashion-mnist", settings={"export.license": text})
        assert opened.recipe.export.license == text

    def test_values_of_other_types_arrive_as_a_recipe_has_them(self, tmp_path: Path) -> None:
        settings = {"bench": {"samples": np.int64(20), "batch_sizes": (1, 8)}, "data.mean": np.array([0.5, 0.5, 0.25])}
        recipe = toolkit.open(tmp_path, data="fashion-mnist", settings=settings).recipe
        assert (recipe.bench.samples, recipe.bench.batch_sizes, recipe.data.mean) == (20, (1, 8), (0.5, 0.5, 0.25))
        weights = {"teacher.weights": tmp_path / "t.pt"}
        assert toolkit.open(tmp_path, data="fashion-mnist", settings=weights).recipe.teacher.weights == str(
            tmp_path / "t.pt"
        )

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"distill": {"epoch": 3}}, r"settings: unknown key distill\.epoch; did you mean distill\.epochs\?"),
            ({"distill.epochs": "3"}, r'settings: distill\.epochs = "3" is not allowed'),
            ({"epochs": 3}, r"settings: 'epochs' is not section\.key, and not a section"),
            (["distill.epochs=3"], r"settings is a list, not a dict; write \{\"distill\.epochs\": 3\}"),
            ("distill.epochs=3", r"settings is a str, not a dict; write"),
            ({1: 3}, r"settings: 1 is no name of a setting; write"),
            ({"distill": {1: 3}}, r"settings: unknown key distill\.1; valid here: "),
        ],
    )
    def test_wrong_ones_are_refused_when_the_workspace_is_opened(
        self, settings: Any, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(toolkit.RecipeError, match=message):
            toolkit.open(tmp_path / "m", data="fashion-mnist", settings=settings)
        assert not (tmp_path / "m").exists()

    def test_a_recipe_is_a_file_a_name_or_itself(self, class_folders: Path, tmp_path: Path) -> None:
        (tmp_path / "r.toml").write_text("[distill]\nepochs = 7\n")
        own = toolkit.Recipe.from_toml(tmp_path / "r.toml")
        for recipe in (tmp_path / "r.toml", str(tmp_path / "r.toml"), own):
            opened = toolkit.open(tmp_path, recipe=recipe, data=class_folders, settings={"student.base": 4})
            assert (opened.recipe.distill.epochs, opened.recipe.student.base) == (7, 4)
        assert toolkit.open(tmp_path, recipe="food11", data=class_folders).recipe.data.image_size == 256
        with pytest.raises(
            toolkit.RecipeError, match=r"recipe: there is no file none\.toml; give a TOML file or one of"
        ):
            toolkit.open(tmp_path, recipe="none.toml")

    def test_arguments_that_no_workspace_takes(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"toolkit\.open has no argument 'devise'; there are path, data, "):
            toolkit.open(tmp_path, devise="cpu")  # type: ignore[call-arg]
        for name in ("seeds", "threads"):
            with pytest.raises(toolkit.UsageError, match=rf"{name} = -1 is not allowed; give 1 or more"):
                toolkit.open(tmp_path, **{name: -1})  # type: ignore[arg-type]
        for wrong in ({"threads": "4"}, {"threads": 0}, {"seeds": 1.5}, {"seeds": None}, {"seeds": True}):
            ((name, value),) = wrong.items()
            with pytest.raises(
                toolkit.UsageError, match=rf"{name} = {value!r} is not allowed; give 1 or more, a whole"
            ):
                toolkit.open(tmp_path, **wrong)  # type: ignore[arg-type]
        with pytest.raises(toolkit.UsageError, match=r"device = 0 is not allowed; give auto, cpu, cuda or cuda:N"):
            toolkit.open(tmp_path, device=0)  # type: ignore[arg-type]
        for path in ("", None):
            with pytest.raises(toolkit.UsageError, match=rf"path = {path!r} is not a model directory; give a folder"):
                toolkit.open(path)  # type: ignore[arg-type]
        for name, allowed in (
            ("recipe", "a Recipe, a name or a TOML file"),
            ("data", "a folder or the name of a data"),
        ):
            with pytest.raises(toolkit.UsageError, match=rf"{name} is a dict, not {allowed}.*; settings= takes a dict"):
                toolkit.open(tmp_path, **{name: {"distill": {"epochs": 3}}})  # type: ignore[arg-type]
        with pytest.raises(toolkit.UsageError, match=r"path is a int, not a model directory; give one of these$"):
            toolkit.open(3)  # type: ignore[arg-type]
        with pytest.raises(toolkit.UsageError, match="'int4' is no precision to export; give fp16, int8 or both"):
            toolkit.open(tmp_path).export("int4")  # type: ignore[arg-type]


class TestOpen:
    """What can be known without the images is said at once."""

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            (
                {"data": "fashion-mnst"},
                toolkit.DataError,
                "is not an existing folder and .*; did you mean fashion-mnist",
            ),
            ({"data": "/no/such/folder"}, toolkit.DataError, "'/no/such/folder' is not an existing folder"),
            ({"data": ""}, toolkit.RecipeError, r'data\.source = "" is not allowed'),
            ({"data": __file__}, toolkit.DataError, r"test_api\.py is a file, not a folder of images"),
            ({"settings": {"data.source": "no"}}, toolkit.DataError, "'no' is not an existing folder"),
            ({"settings": {"student.architecture": "resnet8"}}, toolkit.RecipeError, "unknown architecture 'resnet8'"),
            ({"device": "gpu"}, toolkit.DeviceError, "unknown device 'gpu'; give auto, cpu, cuda or cuda:N"),
            ({"device": "cuda:99"}, toolkit.DeviceError, "device cuda:99 cannot be used: "),
        ],
    )
    def test_mistakes(self, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
        with pytest.raises(error, match=message):
            toolkit.open(tmp_path / "m", **options)
        assert not (tmp_path / "m").exists()

    def test_another_current_directory_afterwards(
        self, class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "data").symlink_to(class_folders)
        (tmp_path / "r.toml").write_text("[distill]\nalpha = 0.25\n")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path)
        workspace = open_small(Path("m"), Path("data"), recipe="r.toml")
        in_settings = toolkit.open("n", settings=SMALL | {"data.source": "data"}, device="cpu", quiet=True)
        assert workspace.path == Path("m")
        assert workspace.recipe.data.source == "data"
        monkeypatch.chdir("elsewhere")
        assert workspace.path == tmp_path / "m"
        assert (workspace.recipe.data.source, workspace.recipe.distill.alpha) == (str(tmp_path / "data"), 0.25)
        assert in_settings.recipe.data.source == str(tmp_path / "data")
        assert workspace.teacher().path == tmp_path / "m" / "teacher.safetensors"
        assert [*Path().iterdir()] == []

    def test_names_stay_names_in_another_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "fashion-mnist").mkdir()
        monkeypatch.chdir(tmp_path)
        workspace = toolkit.open("m", data="fashion-mnist", recipe="fashion-mnist")
        monkeypatch.chdir("fashion-mnist")
        assert workspace.recipe.data.source == "fashion-mnist"

    def test_settings_that_have_moved_are_one_line_per_workspace_and_none_if_it_is_quiet(
        self, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = {"data": SMALL["data"], "distill": {"seed": 3, "epochs": 1}, "teacher.epochs": 1}
        for _ in range(2):
            workspace = toolkit.open(tmp_path, data=class_folders, settings=settings)
            assert "recipe: distill.seed is training.seed now" in capsys.readouterr().err
            assert workspace.recipe.training.seed == 3
            assert "training.seed" not in capsys.readouterr().err
        quiet = toolkit.open(tmp_path, data=class_folders, settings=settings, quiet=True)
        assert quiet.recipe.training.seed == 3
        assert capsys.readouterr().err == ""


class TestStages:
    def test_run_gives_the_report_that_it_wrote(self, finished: tuple[toolkit.Workspace, dict[str, Any]]) -> None:
        workspace, noted = finished
        assert noted["report"].to_json() == json.loads((workspace.path / "report.json").read_text())
        assert noted["report"].distillation.epochs == 3

    def test_every_epoch_of_every_role_is_reported_as_metrics_jsonl_has_it(
        self, finished: tuple[toolkit.Workspace, dict[str, Any]]
    ) -> None:
        workspace, noted = finished
        assert noted["epochs"] == read_metrics(workspace.path / "metrics.jsonl")
        assert [one.role for one in noted["epochs"]] == ["teacher"] * 2 + ["student"] * 3 + ["control"] * 3

    def test_a_stage_returns_its_file_and_its_epochs_and_keeps_what_is_up_to_date(
        self, finished: tuple[toolkit.Workspace, dict[str, Any]], class_folders: Path
    ) -> None:
        again = open_small(finished[0].path, class_folders)
        teacher, student = again.teacher(), again.distill()
        assert (teacher.path, student.path) == (again.path / "teacher.safetensors", again.path / "student.safetensors")
        assert (teacher.new, student.new) == (False, False)
        assert [one.epoch for one in student.epochs] == [0, 1, 2]
        assert student.valid_accuracy == max(one.valid_accuracy for one in student.epochs)
        assert student.info.classes == ("blue", "green", "red")

    @pytest.mark.slow
    def test_export_and_bench_of_what_another_process_made(
        self, finished: tuple[toolkit.Workspace, dict[str, Any]]
    ) -> None:
        again = toolkit.open(str(finished[0].path), device="cpu", quiet=True, settings={"bench": IN_ONNXRUNTIME})
        results = again.export("fp16")
        names = ["teacher.onnx", "teacher.fp16.onnx", "student.onnx", "student.fp16.onnx"]
        assert [result.path.name for result in results] == names
        assert again.bench(provider="cpu").dataset.images == 12

    def test_errors_are_the_command_line_s(
        self, finished: tuple[toolkit.Workspace, dict[str, Any]], class_folders: Path, tmp_path: Path
    ) -> None:
        other = open_small(finished[0].path, class_folders, settings=SMALL | {"training.seed": 5})
        with pytest.raises(toolkit.ArtifactError, match="was made from another recipe; choose another") as caught:
            other.distill()
        assert isinstance(caught.value, toolkit.ToolkitError)
        with pytest.raises(toolkit.ArtifactError, match="there is no model directory"):
            toolkit.open(tmp_path / "none").export()
        assert not (tmp_path / "none" / "teacher.safetensors").exists()

    def test_an_error_of_the_callback_is_the_caller_s_and_the_run_goes_on_from_there(
        self, class_folders: Path, tmp_path: Path
    ) -> None:
        seen = []

        def stop_after_two(metrics: toolkit.EpochMetrics) -> None:
            seen.append((metrics.role, metrics.epoch))
            if len(seen) == 2:
                raise ZeroDivisionError("mine")

        settings = SMALL | {"teacher": SMALL["teacher"] | {"epochs": 4}}
        with pytest.raises(ZeroDivisionError, match="mine"):
            open_small(tmp_path, class_folders, settings=settings).teacher(on_epoch=stop_after_two)
        with pytest.raises(toolkit.ArtifactError, match=r"an interrupted run lies in .*; go on with --resume"):
            open_small(tmp_path, class_folders, settings=settings).teacher()
        resumed = open_small(tmp_path, class_folders, settings=settings, resume=True).teacher(on_epoch=stop_after_two)
        assert seen == [("teacher", epoch) for epoch in range(4)]
        assert [one.epoch for one in resumed.epochs] == [0, 1, 2, 3]

    def test_progress_is_on_stderr_and_quiet_has_none(
        self, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        open_small(tmp_path / "quiet", class_folders).teacher()
        assert capsys.readouterr() == ("", "")
        open_small(tmp_path / "loud", class_folders, quiet=False).teacher()
        out, err = capsys.readouterr()
        assert out == ""
        assert "teacher    1/2" in err
        assert not console.err.quiet


class TestProcess:
    @pytest.mark.slow
    def test_a_new_process_is_as_it_was_after_the_first_stages(self, class_folders: Path, tmp_path: Path) -> None:
        """Here nothing has imported SymPy, matplotlib or torch's compiler yet, or chosen a start method."""
        options = {"data": str(class_folders), "settings": NO_PAIR, "device": "cpu", "quiet": True}
        code = f"""{STATE}
import toolkit
before = process_state()
workspace = toolkit.open({str(tmp_path)!r}, **{options!r})
for stage in (workspace.teacher, workspace.distill, workspace.export, lambda: workspace.export("fp16")):
    stage()
    after = process_state()
    print([name for name in before if before[name] != after[name]])
"""
        assert set(in_python(code).splitlines()) == {"[]"}

    def test_one_stage_works_at_a_time(self, class_folders: Path, tmp_path: Path) -> None:
        epochs: list[str] = []
        losses: dict[str, list[float]] = {}
        begun = threading.Event()

        def note(metrics: toolkit.EpochMetrics) -> None:
            epochs.append(threading.current_thread().name)
            if threading.current_thread() is second:
                begun.set()
            elif metrics.epoch == 0:
                second.start()
                assert not begun.wait(0.5), "the other thread waits"

        def train() -> None:
            name = threading.current_thread().name
            made = open_small(tmp_path / name, class_folders).teacher(on_epoch=note)
            losses[name] = [one.train_loss for one in made.epochs]

        first, second = (threading.Thread(target=train, name=name) for name in ("first", "second"))
        before = process_state()
        first.start()
        first.join()
        second.join()
        assert epochs == ["first", "first", "second", "second"]
        assert losses["first"] == losses["second"]
        assert process_state() == before

    def test_what_a_callback_does_to_torch_stays_with_it(self, class_folders: Path, tmp_path: Path) -> None:
        def disturb(_: object) -> None:
            torch.set_num_threads(1)
            torch.manual_seed(5)

        threads = torch.get_num_threads() + 1
        plain, disturbed = (
            open_small(tmp_path / name, class_folders, threads=threads).teacher(on_epoch=on_epoch)
            for name, on_epoch in (("plain", None), ("disturbed", disturb))
        )
        assert [one.train_loss for one in plain.epochs] == [one.train_loss for one in disturbed.epochs]

    def test_a_gpu_s_random_numbers_that_a_stage_was_the_first_to_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They begin as they would have begun in the caller's own code: with the seed of the CPU's."""
        seeds: list[int] = []
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
        with torch.random.fork_rng([]):
            torch.manual_seed(8)
            seeds.clear()
            with leaving_torch(None):
                monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        assert seeds == [8]

    def test_it_is_as_it_was_after_every_stage(self, finished: tuple[toolkit.Workspace, dict[str, Any]]) -> None:
        before, after = finished[1]["process"]
        assert before == after
        assert set(finished[1]["threads"]) == {2}

    def test_it_is_as_it_was_after_an_answer(
        self, finished: tuple[toolkit.Workspace, dict[str, Any]], class_folders: Path
    ) -> None:
        before = process_state()
        for name in ("student.safetensors", "student.onnx"):
            toolkit.load(finished[0].path / name, provider="cpu").predict(class_folders / "test" / "red" / "0.png")
        assert process_state() == before

    def test_the_allocator_stays_as_it_is(
        self, class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse() -> None:
            raise AssertionError("nobody asked for that")

        monkeypatch.setattr("toolkit.machine.devices.keep_freed_memory", refuse)
        open_small(tmp_path, class_folders).teacher()

    def test_ctrl_c_saves_and_is_a_keyboard_interrupt(
        self, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            open_small(tmp_path, class_folders, quiet=False).teacher(
                on_epoch=lambda _: signal.raise_signal(signal.SIGINT)
            )
        assert "stopped in teacher, after epoch 1, and saved; go on with resume=True" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGINT) is before
        resumed = open_small(tmp_path, class_folders, resume=True).teacher()
        assert len(resumed.epochs) == 2

    def test_a_handler_of_the_caller_s_hears_of_it_when_the_state_is_saved(
        self, class_folders: Path, tmp_path: Path
    ) -> None:
        heard = []
        before = signal.signal(signal.SIGTERM, lambda number, _: heard.append((number, list(tmp_path.glob("*.pt")))))
        try:
            with pytest.raises(toolkit.Interrupted, match="teacher, after epoch 1, and saved"):
                open_small(tmp_path, class_folders).teacher(on_epoch=lambda _: signal.raise_signal(signal.SIGTERM))
        finally:
            signal.signal(signal.SIGTERM, before)
        assert heard == [(signal.SIGTERM, [tmp_path / "checkpoint.pt"])]

    def test_it_trains_in_another_thread_too(self, class_folders: Path, tmp_path: Path) -> None:
        results: list[toolkit.TrainingResult] = []
        thread = threading.Thread(target=lambda: results.append(open_small(tmp_path, class_folders).teacher()))
        thread.start()
        thread.join()
        assert [result.new for result in results] == [True]

    def test_the_directory_is_free_again_afterwards(self, class_folders: Path, tmp_path: Path) -> None:
        code = f"import pathlib, toolkit.modeldir as m; m.ModelDir(pathlib.Path({str(tmp_path)!r})).claim()"
        outputs = []

        def claim(_: object) -> None:
            outputs.append(
                subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
            )

        open_small(tmp_path, class_folders, settings=SMALL | {"teacher.epochs": 1}).teacher(on_epoch=claim)
        assert "another toolkit process is training in" in outputs[0]
        assert in_python(code) == ""
        assert not (tmp_path / ".lock").exists()


class TestModel:
    def test_a_file_an_image_and_an_array_get_the_same_answer(self, model: Path, tmp_path: Path) -> None:
        image = make_image(1, 3)
        image.save(tmp_path / "a.png")
        expected = predict_files(model, [tmp_path / "a.png"], k=2)[0].answer
        loaded = toolkit.load(str(model.parent), provider="cpu")
        for picture in (tmp_path / "a.png", str(tmp_path / "a.png"), image, np.asarray(image)):
            prediction = loaded.predict(picture, k=2)
            assert isinstance(prediction, toolkit.Prediction)
            assert expected is not None
            assert prediction.top == expected.top

    def test_a_list_gets_a_list_and_grey_is_an_image_too(self, model: Path) -> None:
        grey = np.full((40, 50), 200, np.uint8)
        answers = toolkit.load(model, provider="cpu").predict([grey, grey[..., None], Image.fromarray(grey)], k=3)
        assert [len(answer.top) for answer in answers] == [3, 3, 3]
        assert len({answer.top for answer in answers}) == 1

    def test_logits_are_those_of_predict(self, model: Path) -> None:
        loaded = toolkit.load(model, provider="cpu")
        images = [make_image(label, label) for label in range(3)]
        batch = np.stack([loaded.preprocess(image) for image in images])
        expected = [answer.logits for answer in loaded.predict(images)]
        np.testing.assert_allclose(loaded.logits(batch), expected, atol=1e-5)
        assert loaded.classes == COLOURS

    def test_weights_answer_as_their_onnx_file(self, finished: tuple[toolkit.Workspace, dict[str, Any]]) -> None:
        path, image = finished[0].path, make_image(2, 5)
        weights, file = (toolkit.load(path / name, provider="cpu") for name in ("student.safetensors", "student.onnx"))
        np.testing.assert_allclose(weights.predict(image).logits, file.predict(image).logits, atol=1e-4)
        assert "torch on cpu" in repr(weights)

    def test_tensors_and_other_paths_are_pictures_too(self, model: Path, tmp_path: Path) -> None:
        image = make_image(1, 3)
        image.save(tmp_path / "a.png")

        class Entry:
            def __fspath__(self) -> str:
                return str(tmp_path / "a.png")

        loaded = toolkit.load(model, provider="cpu")
        expected = loaded.predict(image)
        tensor = torch.from_numpy(np.asarray(image).copy())
        assert loaded.predict(tensor).top == expected.top  # type: ignore[call-overload]
        assert loaded.predict(Entry()).top == expected.top
        assert [one.top for one in loaded.predict(picture for picture in (Entry(), image))] == [expected.top] * 2

    def test_preprocess_takes_every_picture_and_logits_a_list(self, model: Path, tmp_path: Path) -> None:
        image = make_image(1, 3)
        image.save(tmp_path / "a.png")
        loaded = toolkit.load(model, provider="cpu")
        seen = [loaded.preprocess(picture) for picture in (image, np.asarray(image), tmp_path / "a.png")]
        assert seen[0].shape == (loaded.image_size, loaded.image_size, 3)
        np.testing.assert_array_equal(seen[0], seen[1])
        np.testing.assert_array_equal(seen[0], seen[2])
        np.testing.assert_array_equal(loaded.logits(seen), loaded.logits(np.stack(seen)))

    def test_sixteen_bits_are_scaled_and_floats_have_no_range(self, model: Path) -> None:
        grey = np.asarray(make_image(1, 3))[..., 0]
        loaded = toolkit.load(model, provider="cpu")
        expected = loaded.predict(grey).top
        for wide in (grey.astype(np.uint16) * 257, grey.astype(np.int32) * 257):
            assert loaded.predict(Image.fromarray(wide)).top == expected
        with pytest.raises(
            toolkit.DataError, match="the image has mode F, whose values have no known range; scale it to"
        ):
            loaded.predict(Image.fromarray(grey.astype(np.float32)))

    @pytest.mark.parametrize("k", [0, -1, 1.5, "2", None])
    def test_a_number_of_classes_that_cannot_be(self, k: Any, model: Path) -> None:
        with pytest.raises(toolkit.UsageError, match=rf"k = {k!r} is not allowed; give the number of classes"):
            toolkit.load(model, provider="cpu").predict(make_image(0, 0), k=k)

    def test_the_first_answer_is_timed_as_the_command_times_it(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from toolkit.runtimes.onnxruntime import OnnxPredictor

        asked = []
        real = OnnxPredictor.logits
        monkeypatch.setattr(OnnxPredictor, "logits", lambda own, images: asked.append(1) or real(own, images))
        toolkit.load(model, provider="cpu")
        assert asked == [1]

    @pytest.mark.parametrize(
        ("picture", "message"),
        [
            (None, "the image is a NoneType, not uint8"),
            (3, "the image is a int, not uint8"),
            ({}, "the image is a dict, not uint8"),
            (b"abc", r"the image is a bytes, not uint8 .*; open it first: PIL\.Image\.open takes files, and"),
            (io.BytesIO(b"abc"), "the image is a BytesIO, not .*; open it first: "),
            (np.zeros((2, 8, 8, 3), np.uint8), r"; for several images give a list: list\(images\)"),
            ([[1, 2], [3, 4]], "image 0 is a list, not uint8"),
            (torch.zeros(2, requires_grad=True), r"the image is no array: Can't call numpy\(\) on Tensor .*; give an"),
            ("a\0b.png", "cannot read a.b.png as an image: embedded null byte"),
            ("a" * 5000, "cannot read a+ as an image: File name too long"),
        ],
    )  # fmt: skip
    def test_what_is_no_picture(self, picture: Any, message: str, model: Path) -> None:
        with pytest.raises(toolkit.DataError, match=message):
            toolkit.load(model, provider="cpu").predict(picture)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (
                np.zeros((3, 32, 32), np.float32),
                r"the image is float32 \(3, 32, 32\), not uint8 \(H, W, 3\) or \(H, W\)",
            ),
            (np.zeros((2, 8, 8, 3), np.uint8), r"the image is uint8 \(2, 8, 8, 3\), not"),
            (np.zeros((0, 8, 3), np.uint8), r"the image has no pixels"),
        ],
    )
    def test_an_array_that_is_no_image(self, model: Path, array: np.ndarray, message: str) -> None:
        with pytest.raises(toolkit.DataError, match=message):
            toolkit.load(model, provider="cpu").predict(array)

    def test_a_list_s_entry_that_is_no_image_is_named_by_its_place(self, model: Path) -> None:
        with pytest.raises(toolkit.DataError, match="image 1 is a dict, not uint8"):
            toolkit.load(model, provider="cpu").predict([make_image(0, 0), {}])  # type: ignore[list-item]

    def test_a_broken_image_is_reported(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(make_png(8, 8))
        with pytest.raises(toolkit.DataError, match="cannot read"):
            toolkit.load(model, provider="cpu").predict(tmp_path / "a.png")
        with (
            Image.open(tmp_path / "a.png") as image,
            pytest.raises(toolkit.DataError, match="the image cannot be read: "),
        ):
            toolkit.load(model, provider="cpu").predict(image)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        for name in ("none.onnx", "none.safetensors"):
            with pytest.raises(toolkit.ArtifactError, match=rf"there is no file .*{name}; check the path"):
                toolkit.load(tmp_path / name)


def fetch_splits(kind: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """Images of three colours, twelve to train on and three for each other split."""
    counts = {"train": 12, "valid": 3, "test": 3}
    return {
        split: (
            [kind(np.asarray(make_image(i % 3, i + 100 * count))) for i in range(count)],
            [i % 3 for i in range(count)],
        )
        for split, count in counts.items()
    }


DARK = [np.zeros((4, 4), np.uint8)] * 2


class TestArrays:
    NAMES = ("red/dark", "green", "blue")

    def test_a_student_learns_from_them(self, tmp_path: Path) -> None:
        folder = toolkit.from_arrays(**fetch_splits(np.asarray), classes=self.NAMES, name="colours")
        result = open_small(tmp_path, folder).distill()
        assert result.info.classes == self.NAMES
        assert folder.name == "colours"

    def test_pixels_and_labels_arrive_as_they_were_given(self, tmp_path: Path) -> None:
        from toolkit.data.sources import load_dataset

        splits = fetch_splits(np.asarray)
        folder = toolkit.from_arrays(**splits, classes=self.NAMES)
        dataset = load_dataset(toolkit.open(tmp_path, data=folder).recipe.data)
        assert dataset.classes == self.NAMES
        for split, images in dataset.splits.items():
            for i, name in enumerate(images.names):
                index = int(Path(name).stem)
                assert splits[split][1][index] == images.labels[i]
                np.testing.assert_array_equal(np.asarray(images.read(i)), splits[split][0][index])

    def test_tensors_are_arrays(self) -> None:
        pixels, labels = np.arange(96, dtype=np.uint8).reshape(6, 4, 4), np.arange(6) % 2
        tensors = torch.from_numpy(pixels), torch.from_numpy(labels)
        assert toolkit.from_arrays(tensors) == toolkit.from_arrays((pixels, labels))  # type: ignore[arg-type]

    def test_the_same_content_is_written_once_and_another_beside_it(self) -> None:
        arrays, images = (fetch_splits(kind) for kind in (np.asarray, Image.fromarray))
        first = toolkit.from_arrays(**arrays)
        stamps = {path: path.stat().st_mtime_ns for path in first.rglob("*.png")}
        assert len(stamps) == 18
        assert toolkit.from_arrays(**images) == first
        assert {path: path.stat().st_mtime_ns for path in first.rglob("*.png")} == stamps
        assert toolkit.from_arrays(**arrays, classes=self.NAMES) != first
        arrays["train"][0][0] = arrays["train"][0][0].copy()
        arrays["train"][0][0][0, 0] ^= 1
        assert toolkit.from_arrays(**arrays) != first
        assert [path.name for path in first.parents[1].iterdir() if path.name.startswith(".")] == []

    def test_one_array_of_grey_images_and_names_for_labels(self, tmp_path: Path) -> None:
        from toolkit.data.sources import load_dataset

        pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 7), np.uint8)
        folder = toolkit.from_arrays((pixels, ["b", "a"] * 6))
        dataset = load_dataset(toolkit.open(tmp_path, data=folder).recipe.data)
        assert dataset.classes == ("a", "b")
        assert sum(map(len, dataset.splits.values())) == 12
        read = {name: np.asarray(part.read(i)) for part in dataset.splits.values() for i, name in enumerate(part.names)}
        np.testing.assert_array_equal(read["train/1/000002.png"], pixels[2])

    def test_classes_that_are_called_by_other_classes_numbers(self, tmp_path: Path) -> None:
        from toolkit.data.sources import load_dataset

        pixels = np.arange(8, dtype=np.uint8)[:, None, None] * np.ones((8, 4, 4), np.uint8)
        folder = toolkit.from_arrays((pixels, np.arange(8) % 2), classes=["1", "0"])
        dataset = load_dataset(toolkit.open(tmp_path, data=folder).recipe.data)
        assert dataset.classes == ("1", "0")
        for part in dataset.splits.values():
            assert [int(np.asarray(part.read(i))[0, 0]) % 2 for i in range(len(part))] == part.labels.tolist()

    def test_other_splits_may_lack_a_class(self, tmp_path: Path) -> None:
        from toolkit.data.sources import load_dataset

        folder = toolkit.from_arrays((DARK, [0, 1]), (DARK[:1], [1]), (DARK[:1], [0]))
        dataset = load_dataset(toolkit.open(tmp_path, data=folder).recipe.data)
        assert dataset.classes == ("0", "1")
        assert [images.labels.tolist() for images in dataset.splits.values()] == [[0, 1], [1], [0]]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"train": ([np.zeros((4, 4), np.uint8)], [0, 1])}, "train has 1 images and 2 labels; give one"),
            ({"train": ([np.zeros((4, 4))] * 2, [0, 1])}, r"train image 0 is float64 \(4, 4\), not uint8"),
            ({"train": (DARK, [0, 1.5])}, "a label is 1.5, not a class number"),
            ({"classes": ["a", "b", "c"]}, r"class 'c' \(2\) has no images in train"),
            ({"train": np.zeros((2, 4, 4), np.uint8)}, r"train is not a pair of images and labels; give train="),
            ({"train": ([0, 1], DARK)}, r"a label is an array \(4, 4\), not a class number or a class name"),
            ({"train": ((one for one in DARK), [0, 1])}, "train images are a generator; give a list or an array"),
            ({"train": (DARK, iter([0, 1]))}, "train labels are a list_iterator; give a list or an array"),
            ({"train": (DARK, torch.tensor([0.0, 1.0]))}, r"a label is tensor\(0\.\), not a class number"),
            ({"classes": "ab"}, "classes = 'ab' is one text; give a list of names"),
            ({"classes": ["a"]}, r"there is one class only \(a\); a classifier needs at least two"),
            ({"classes": ["a", "a"]}, "two classes are called 'a'"),
            ({"classes": ["a", "b\n"]}, r"class name 'b\\n' is not allowed"),
            ({"classes": ["b", "a"], "train": (DARK, ["a", "c"])}, "train label 1 is 'c', which"),
            ({"classes": ["a", "b"], "train": (DARK, [0, 2])}, "train label 1 is 2, and there are 2"),
            ({"name": "a/b"}, "name = 'a/b' cannot be a folder's"),
        ],
    )  # fmt: skip
    def test_arrays_that_cannot_be_a_data_set(self, change: dict[str, Any], message: str) -> None:
        good: dict[str, Any] = {"train": (DARK, [0, 1])}
        with pytest.raises(toolkit.DataError, match=message):
            toolkit.from_arrays(**good | change)

    def test_a_cache_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "file"))
        with pytest.raises(toolkit.DataError, match=r"cannot keep images in the cache, .*; free some space"):
            toolkit.from_arrays((DARK, [0, 1]))


def test_a_workspace_says_where_it_is(tmp_path: Path) -> None:
    assert repr(toolkit.open(tmp_path)) == f"<toolkit workspace {tmp_path}>"
    assert Workspace is toolkit.Workspace


def test_broken_images_are_left_out_or_refused(tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "data", (6, 3, 3))
    (data / "train" / "red" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(toolkit.DataError, match=r"broken\.png"):
        open_small(tmp_path / "m", data, strict=True).teacher()
    assert open_small(tmp_path / "m", data).teacher().new
