"""A network of one's own: this file registers it, and nothing else of the toolkit knows it."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from toolkit import architectures, control_process, pipeline
from toolkit.bench.measure import first_use
from toolkit.bench.measure.rows import Row
from toolkit.bench.schema import Report
from toolkit.errors import RecipeError
from toolkit.machine.devices import same_imports
from toolkit.networks import registry
from toolkit.networks.registry import NetworkSettings, NetworkSpec, build, register, spec_of
from toolkit.networks.weights import ModelInfo, load_model, read_info
from toolkit.recipe import Recipe
from toolkit.runtimes.pytorch import TorchPredictor
from toolkit.stage_setup import prepare_training


class PlainSettings(NetworkSettings):
    """The settings of `plain`."""

    channels: int = Field(6, ge=1, le=64, description="channels of its convolution")


@register("plain", PlainSettings)
class Plain(nn.Module):
    """A convolution, the average, a linear layer."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.convolution(images)).mean((2, 3)))
        return logits


OWN = ["student.architecture=plain", "student.channels=5"]
SMALL = [
    *("data.image_size=32", "data.resize=36", "training.precision=fp32"),
    *("teacher.architecture=plain", "teacher.epochs=1", "teacher.batch_size=12"),
    *("distill.epochs=2", "distill.batch_size=12", "distill.teacher_views=1", "distill.control=true"),
    *("bench.samples=10", "bench.seconds=0.2", "bench.batch_sizes=[1]"),
]


@pytest.fixture
def registering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that a test registers are forgotten after it."""
    for module, name in ((registry, "_builders"), (registry, "_modules"), (architectures, "_settings")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))


@pytest.fixture(scope="module")
def finished(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The model directory and the report of a `toolkit run` with the network as student and teacher."""
    out = tmp_path_factory.mktemp("own")
    setup = prepare_training(None, str(class_folders), out, [*SMALL, *OWN], device="cpu")
    return out, pipeline.run_all(setup)


@pytest.mark.slow
class TestFromEndToEnd:
    def test_the_report_has_its_rows(self, finished: tuple[Path, Report]) -> None:
        out, report = finished
        parameters = sum(parameter.numel() for parameter in Plain(3, 5).parameters())
        rows = {(row.model, row.runtime): row for row in report.rows}
        assert rows["student", "torch"].params == rows["student", "onnxruntime"].params == parameters
        assert rows["student", "torch"].peak_memory_mib is not None, "a process of its own has imported this module"
        assert report.recipe["student"] == {"architecture": "plain", "channels": 5}
        assert (out / "student.onnx").is_file()

    def test_its_file_says_what_it_is(self, finished: tuple[Path, Report]) -> None:
        classifier, info = load_model(finished[0] / "student.safetensors")
        assert isinstance(classifier.network, Plain)
        assert info.network == spec_of(classifier.network) == NetworkSpec("plain", {"channels": 5})
        assert json.loads(info.to_json())["settings"] == {"channels": 5}
        assert read_info(finished[0] / "teacher.safetensors").network == NetworkSpec("plain", {"channels": 6})

    def test_it_is_up_to_date_until_its_settings_change(
        self, finished: tuple[Path, Report], class_folders: Path
    ) -> None:
        from toolkit.distill.student import student_settings

        setup = prepare_training(None, str(class_folders), finished[0], [*SMALL, *OWN], device="cpu")
        teacher = finished[0] / "teacher.safetensors"
        settings = student_settings(setup.recipe, setup.dataset, teacher)
        assert settings["recipe_sha256"] == read_info(finished[0] / "student.safetensors").recipe_sha256
        wider = setup.recipe.with_overrides(["student.channels=7"])
        assert student_settings(wider, setup.dataset, teacher) != settings


class Demanding(NetworkSettings):
    channels: int


class TestRecipe:
    @pytest.mark.usefixtures("registering")
    def test_a_setting_without_a_default_is_asked_for(self) -> None:
        register("demanding", Demanding)(Plain)
        with pytest.raises(RecipeError) as refused:
            Recipe().with_overrides(["student.architecture=demanding"])
        expected = "this architecture has no default for it: set student.channels"
        assert str(refused.value) == f"--set: student.channels is missing; {expected}"
        demanding = Recipe().with_overrides(["student.architecture=demanding", "student.channels=3"])
        assert demanding.student.settings == {"channels": 3}

    def test_its_settings_are_keys_of_the_section(self) -> None:
        recipe = Recipe().with_overrides(OWN)
        assert recipe.student.settings == {"channels": 5}
        assert Recipe.from_dict(recipe.model_dump(mode="json"), "a file") == recipe
        assert Recipe().with_overrides(["teacher.architecture=plain"]).teacher.settings == {"channels": 6}

    def test_another_architecture_leaves_them_behind(self) -> None:
        other = Recipe().with_overrides(OWN).with_overrides(["student.architecture=depthwise", "student.base=8"])
        assert other.student.settings == {"base": 8, "width_mult": 1.0}
        assert Recipe().with_overrides(["student.base=8"]).with_overrides(OWN).student.settings == {"channels": 5}

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("student.channels=0", r"student\.channels = 0 is not allowed; input should be greater than or equal to 1"),
            ("student.channels=2.5", r"student\.channels = 2\.5 is not allowed; input should be a valid integer"),
            (
                "student.chanels=3",
                r"unknown key student\.chanels; did you mean student\.channels\? "
                r"valid here: architecture, and for plain: channels$",
            ),
            (
                "student.base=8",
                r"unknown key student\.base; base belongs to depthwise; valid here: architecture, and for plain",
            ),
        ],
    )
    def test_settings_that_it_does_not_take_are_refused(self, override: str, message: str) -> None:
        with pytest.raises(RecipeError, match=message) as caught:
            Recipe().with_overrides([*OWN, override])
        assert "\n" not in str(caught.value)


class TestRegister:
    def test_a_name_that_the_toolkit_has(self, registering: None) -> None:
        for name in ("depthwise", "resnet18"):
            with pytest.raises(RecipeError, match=f"has an architecture '{name}' already; register yours under"):
                register(name)

    def test_a_name_of_ones_own_may_be_registered_once_more(self, registering: None) -> None:
        register("plain")(lambda num_classes: Plain(num_classes, 3))
        assert spec_of(build("plain", 2)).settings == {}

    def test_settings_that_a_section_has(self, registering: None) -> None:
        class Clashing(NetworkSettings):
            epochs: int = 3

        with pytest.raises(RecipeError, match=r"'odd' has a setting 'epochs', which is a key of \[student\] or \[tea"):
            register("odd", Clashing)

    def test_settings_of_another_kind(self, registering: None) -> None:
        with pytest.raises(RecipeError, match="the settings of 'odd' are not NetworkSettings; derive their class from"):
            register("odd", dict)  # type: ignore[arg-type]

    def test_without_parentheses(self, registering: None) -> None:
        with pytest.raises(
            RecipeError, match=r"the name of an architecture is missing; .*Plain.*; write @toolkit\.regis"
        ):
            register(Plain)  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["", "my net.x", "a/b", "a\n"])
    def test_names_that_are_not_allowed(self, name: str, registering: None) -> None:
        with pytest.raises(RecipeError, match=r"the name '.*' is not allowed; use letters, digits, _ and -"):
            register(name)

    @pytest.mark.parametrize("settings", [PlainSettings(), {}, {"channels": 3}, None])
    def test_settings_that_are_no_class(self, settings: Any, registering: None) -> None:
        with pytest.raises(
            RecipeError, match=r"are not NetworkSettings; derive their class .*, and give the class itself"
        ):
            register("odd", settings)

    def test_something_that_cannot_be_called(self, registering: None) -> None:
        with pytest.raises(
            RecipeError, match="'odd' is registered with a str; put the decorator before a class or a fun"
        ):
            register("odd")("Plain")  # type: ignore[type-var]
        assert "odd" not in registry.architectures()

    def test_lists_are_settings_too(self, registering: None) -> None:
        class Depths(NetworkSettings):
            depths: tuple[int, ...] = (1, 2)

        seen = []

        @register("deep", Depths)
        def make(num_classes: int, depths: tuple[int, ...]) -> nn.Module:
            seen.append(depths)
            return Plain(num_classes, len(depths))

        recipe = Recipe().with_overrides(["student.architecture=deep", "student.depths=[3, 4, 5]"])
        spec = NetworkSpec.of(recipe.student)
        spec.build(2)
        assert seen == [(3, 4, 5)]
        assert hash(spec) == hash(NetworkSpec("deep", {"depths": [3, 4, 5]}))


class TestBuild:
    def test_settings_that_it_does_not_take(self) -> None:
        with pytest.raises(
            RecipeError, match=r"plain: the setting base = 3 is not allowed \(Extra .*its settings are: c"
        ):
            build("plain", 2, base=3)
        with pytest.raises(RecipeError, match=r"resnet18: the setting base = 3 .*; its settings are: none"):
            build("resnet18", 2, base=3)

    def test_an_answer_that_is_no_logits(self, registering: None) -> None:
        register("odd")(lambda num_classes: nn.Flatten())
        with pytest.raises(RecipeError, match=r"odd answers one image of 2 classes with \(1, 768\); a network has to"):
            build("odd", 2, image_size=16)

    def test_an_error_of_the_builder_is_not_reported_as_one_of_the_size(self, registering: None) -> None:
        def broken(num_classes: int) -> nn.Module:
            raise ValueError("channels must be even")

        register("odd")(broken)
        with pytest.raises(
            RecipeError, match=r"^odd cannot be built with \(2\): ValueError: channels must be even; mend"
        ) as caught:
            build("odd", 2, image_size=16)
        assert "16" not in str(caught.value)
        assert isinstance(caught.value.__cause__, ValueError)

    def test_a_builder_that_does_not_take_the_settings(self, registering: None) -> None:
        register("odd", PlainSettings)(lambda num_classes: Plain(num_classes, 3))
        message = (
            r"^odd cannot be built with \(2, channels=6\): TypeError: .* unexpected keyword argument 'channels'; mend"
        )
        with pytest.raises(RecipeError, match=message):
            build("odd", 2)

    def test_a_builder_that_returns_something_else(self, registering: None) -> None:
        register("odd")(lambda num_classes: num_classes)  # type: ignore[type-var]
        with pytest.raises(RecipeError, match=r"the builder of odd returns a int; it has to return an nn\.Module"):
            build("odd", 2)

    def test_a_network_without_parameters(self, registering: None) -> None:
        class Empty(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return images.mean((2, 3))

        register("odd")(lambda num_classes: Empty())
        with pytest.raises(
            RecipeError, match="odd has no parameters to train; keep its layers as attributes, or in an"
        ):
            build("odd", 3, image_size=16)

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (
                KeyError("x"),
                r"odd fails on one image of 16 px \(data\.image_size\): KeyError: 'x'; mend its forward; or",
            ),
            (
                ValueError("a\nb"),
                r"of 16 px \(data\.image_size\): ValueError: a; mend its forward; or, if it is made for",
            ),
            (AssertionError(), r"of 16 px \(data\.image_size\): AssertionError; mend its forward"),
        ],
    )
    def test_a_forward_that_fails(self, error: Exception, message: str, registering: None) -> None:
        class Failing(Plain):
            def forward(self, images: Tensor) -> Tensor:
                raise error

        register("odd")(lambda num_classes: Failing(num_classes, 3))
        with pytest.raises(RecipeError, match=message) as caught:
            build("odd", 2, image_size=16)
        assert caught.value.__cause__ is error


class TestBeforeAnyWork:
    """Student and teacher are tried with one image before the teacher is trained, and before anything is decoded."""

    @pytest.fixture
    def failing(self, registering: None, monkeypatch: pytest.MonkeyPatch) -> None:
        class Failing(Plain):
            def forward(self, images: Tensor) -> Tensor:
                raise KeyError("x")

        register("odd", PlainSettings)(Failing)

        def refuse(*_: object) -> None:
            raise AssertionError("nothing is decoded yet")

        monkeypatch.setattr("toolkit.stage_setup.StageSetup._load_pixels", refuse)

    @pytest.mark.parametrize("role", ["student", "teacher"])
    @pytest.mark.parametrize("stage", [pipeline.make_teacher, pipeline.distill_student, pipeline.run_all])
    def test_every_training_stage(
        self, stage: Callable[..., object], role: str, failing: None, class_folders: Path, tmp_path: Path
    ) -> None:
        setup = prepare_training(
            None, str(class_folders), tmp_path, [*SMALL, *OWN, f"{role}.architecture=odd"], device="cpu"
        )
        with pytest.raises(RecipeError, match="odd fails on one image of 32 px"):
            stage(setup)

    def test_a_student_whose_teacher_is_there(self, failing: None, class_folders: Path, tmp_path: Path) -> None:
        (tmp_path / "teacher.safetensors").touch()
        overrides = [*SMALL, *OWN, "student.architecture=odd"]
        setup = prepare_training(None, str(class_folders), tmp_path, overrides, device="cpu")
        with pytest.raises(RecipeError, match="odd fails on one image of 32 px"):
            pipeline.distill_student(setup)

    def test_the_command_says_it_in_one_line(
        self,
        failing: None,
        class_folders: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        from toolkit.__main__ import main

        sets = [part for setting in [*SMALL, *OWN, "student.architecture=odd"] for part in ("--set", setting)]
        arguments = [
            "toolkit",
            "teacher",
            "--data",
            str(class_folders),
            "--out",
            str(tmp_path),
            "--device",
            "cpu",
            *sets,
        ]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        assert "odd fails on one image of 32 px (data.image_size): KeyError: 'x'; mend" in capsys.readouterr().err


def test_the_document_s_network(registering: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert code is not None
    (tmp_path / "tiny_of_the_document.py").write_text(code[1], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("tiny_of_the_document")
    assert spec_of(build("tiny", 2, image_size=16)).settings == {"channels": 16}
    assert registry.modules_to_import("tiny") == ["tiny_of_the_document"]


def test_an_unknown_architecture_is_said_before_any_work(tmp_path: Path) -> None:
    for section in ("student", "teacher"):
        with pytest.raises(RecipeError, match="unknown architecture 'plane'; did you mean plain"):
            prepare_training(None, "nowhere", tmp_path / "m", [f"{section}.architecture=plane"])
    assert not (tmp_path / "m").exists()


class TestOtherProcesses:
    def test_they_import_the_module_that_registers_it(self) -> None:
        assert registry.modules_to_import("resnet18", "plain") == [__name__]
        code = (
            f"import {__name__}\nfrom toolkit.networks.registry import build\n"
            "print(type(build('plain', 2)).__name__)"
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], env=os.environ | same_imports(), capture_output=True, text=True
        )
        assert done.stdout == "Plain\n", done.stderr

    def test_a_script_s_network_stays_in_its_process(
        self, registering: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its control is trained after the student, and its first use is timed here, without its memory."""
        exec("register('plain', PlainSettings)(Plain)", {**globals(), "__name__": "__main__"})
        assert registry.modules_to_import("plain") is None
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        monkeypatch.setattr(control_process, "memory_bytes", lambda: control_process.ENOUGH_MEMORY_BYTES)
        assert control_process.has_room("cpu", "depthwise")
        assert not control_process.has_room("cpu", "plain")
        path = tmp_path / "student.safetensors"
        network = build("plain", 2, channels=3)
        save(path, network)
        row = Row("student", "fp32", path, TorchPredictor(path, "cpu", threads=1), network, {})
        used = first_use.measure_first_uses([row], 1)[0]
        assert used.first_call_ms > 0
        assert used.peak_memory_mib is None


def save(path: Path, network: nn.Module) -> None:
    from toolkit.data.preprocess import Preprocess
    from toolkit.networks.weights import save_model

    preprocess = Preprocess(32, 0, (0.5,) * 3, (0.5,) * 3)
    info = ModelInfo("student", spec_of(network), ("a", "b"), preprocess, {}, "", "", None, "0.0")
    save_model(path, network, info)
