"""The face for Python: the commands' results and errors, typed, and a process that is afterwards as it was before."""

import json
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


NO_PAIR = SMALL | {"distill": SMALL["distill"] | {"teacher_views": 0}}
"""Student and control one after the other, as with a live teacher."""


def open_small(path: Path, data: Path, **options: Any) -> toolkit.Workspace:
    options = {"settings": SMALL, "device": "cpu", "quiet": True} | options
    return toolkit.open(path, data=data, **options)


def process_state() -> list[Any]:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP)]
    return [torch.get_num_threads(), torch.get_rng_state().tolist(), handlers]


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
        ],
    )
    def test_wrong_ones_are_refused_when_the_workspace_is_opened(
        self, settings: dict[str, Any], message: str, tmp_path: Path
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
        with pytest.raises(toolkit.UsageError, match="'int4' is no precision to export; give fp16, int8 or both"):
            toolkit.open(tmp_path).export("int4")  # type: ignore[arg-type]


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
        again = toolkit.open(str(finished[0].path), device="cpu", quiet=True, settings={"bench": SMALL["bench"]})
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
        with pytest.raises(toolkit.DataError, match="is not an existing folder and not the name of a data set"):
            toolkit.open(tmp_path / "none", data="no such data").teacher()
        with pytest.raises(toolkit.DeviceError, match="unknown device 'gpu'"):
            open_small(tmp_path / "none", class_folders, device="gpu").teacher()
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
    def test_it_is_as_it_was_after_every_stage(self, finished: tuple[toolkit.Workspace, dict[str, Any]]) -> None:
        before, after = finished[1]["process"]
        assert before == after
        assert set(finished[1]["threads"]) == {2}

    def test_it_is_as_it_was_after_an_answer(
        self, finished: tuple[toolkit.Workspace, dict[str, Any]], class_folders: Path
    ) -> None:
        before, filters = process_state(), list(warnings.filters)
        for name in ("student.safetensors", "student.onnx"):
            toolkit.load(finished[0].path / name, provider="cpu").predict(class_folders / "test" / "red" / "0.png")
        assert process_state() == before
        assert warnings.filters == filters

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
