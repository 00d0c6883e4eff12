"""ONNX files of any origin as teachers: what they say, what is tried, which classes they know, and where they end."""

import copy
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import make_class_folders
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import save_colour_model
from torch import Tensor

import toolkit
from toolkit.architectures import OnnxSettings
from toolkit.cli import app
from toolkit.errors import RecipeError, ToolkitError, WeightsError
from toolkit.export.export import ExportOptions, export_onnx
from toolkit.networks import onnx_file
from toolkit.networks.class_map import map_classes
from toolkit.networks.of_onnx import OnnxNetwork, import_onnx
from toolkit.networks.onnx_file import read_onnx
from toolkit.networks.registry import NEVER
from toolkit.networks.weights import import_teacher, load_model
from toolkit.recipe import Recipe

SIZE = 32
NOTHING = (0.0,) * 3, (1.0,) * 3
SMALL = {
    "data.image_size": SIZE,
    "data.resize": 36,
    "training.precision": "fp32",
    "student.base": 4,
    "distill.epochs": 1,
    "distill.batch_size": 12,
    "bench.samples": 10,
    "bench.seconds": 0.1,
    "bench.batch_sizes": [1],
}


def save_foreign(
    path: Path,
    *,
    layout: str = "nchw",
    element: int = TensorProto.FLOAT,
    batch: object = "batch",
    size: object = SIZE,
    ending: str = "",
    outputs: int = 3,
    channels: object = 3,
    metadata: dict[str, str] | None = None,
    answer: tuple[object, ...] = (),
    bias: float = 0.0,
) -> Path:
    """A file as other tools write them: mean colours of the input, times ten, in the order red, green, blue, ...

    `ending` is an operator after the logits. White is whatever it is in the input.
    """
    shape = [batch, channels, size, size] if layout == "nchw" else [batch, size, size, channels]
    axes = np.array([2, 3] if layout == "nchw" else [1, 2], np.int64)
    weight = 10 * np.eye(3, outputs, dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["input"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "weight", "bias"], ["scores"]),
    ]
    nodes.append(
        helper.make_node(ending or "Identity", ["scores"], ["output"], **({"axis": 1} if ending == "Softmax" else {}))
    )
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("input", element, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, list(answer or (batch, outputs)))],
        [
            numpy_helper.from_array(axes, "axes"),
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.full(outputs, bias, np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    if metadata:
        helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def import_file(path: Path, *arguments: Any) -> tuple[OnnxNetwork, int]:
    """import_onnx of a file without a normalisation."""
    settings, size, *normalisation = arguments
    return import_onnx(path, read_onnx(path), settings, size, (normalisation[0], normalisation[1]))


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def colours(pixels: Tensor) -> Tensor:
    return 10 * pixels.mean((2, 3))


class TestWhatAFileSays:
    @pytest.mark.parametrize(("layout", "size"), [("nchw", SIZE), ("nhwc", 48), ("nchw", "height")])
    def test_form_of_the_input(self, tmp_path: Path, layout: str, size: object) -> None:
        found = read_onnx(save_foreign(tmp_path / "a.onnx", layout=layout, size=size))
        assert (found.layout, found.element, found.batch) == (layout, "float32", None)
        assert found.size == (size if isinstance(size, int) else None)
        assert (found.mean, found.std, found.classes) == (None, None, None)

    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    def test_an_open_axis_that_is_called_so_has_the_colours(self, tmp_path: Path, layout: str) -> None:
        """Hugging Face's exports have no sizes, and such names."""
        assert read_onnx(
            save_foreign(tmp_path / "a.onnx", layout=layout, channels="num_channels", size="s")
        ).layout == (layout)

    def test_an_open_channel_axis_says_no_layout(self, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "a.onnx", channels="axis1", size="side")
        assert read_onnx(path).layout is None
        with pytest.raises(
            WeightsError, match=r"does not say where its input has the colours; give --set teacher.layout"
        ):
            import_file(path, OnnxSettings(), SIZE, *NOTHING)
        network, count = import_file(path, OnnxSettings(layout="nchw"), SIZE, *NOTHING)
        torch.testing.assert_close(network(images()), colours(images()))
        assert count == 3

    def test_this_toolkits_own_metadata(self, tmp_path: Path) -> None:
        found = read_onnx(save_colour_model(tmp_path / "a.onnx"))
        assert (found.layout, found.element, found.size) == ("nhwc", "uint8", 32)
        assert found.classes == ("red", "green", "blue")
        assert (found.mean, found.std) == NOTHING
        assert found.outputs[0] == "logits"

    def test_ultralytics_metadata(self, tmp_path: Path) -> None:
        words = {"names": "{0: 'rot', 1: 'grün', 2: 'blau'}", "imgsz": "[64, 64]", "task": "classify"}
        found = read_onnx(save_foreign(tmp_path / "a.onnx", size="height", metadata=words))
        assert (found.classes, found.size) == (("rot", "grün", "blau"), 64)
        assert (found.mean, found.std) == NOTHING

    @pytest.mark.parametrize("names", ["{0: 'a'", "[1, 2]", "{'x': 'a'}", "__import__('os')", "(" * 500])
    def test_words_that_make_no_sense_are_no_words(self, tmp_path: Path, names: str) -> None:
        assert read_onnx(save_foreign(tmp_path / "a.onnx", metadata={"names": names})).classes is None

    def test_config_files_beside_it(self, tmp_path: Path) -> None:
        """As Olive and optimum leave them."""
        config = {"model_type": "vit", "id2label": {"0": "a", "1": "b", "2": "c"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "preprocessor_config.json").write_text(
            json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 48, "width": 48}})
        )
        found = read_onnx(save_foreign(tmp_path / "a.onnx", size="height"))
        assert (found.classes, found.mean, found.std, found.size) == (("a", "b", "c"), (0.5,) * 3, (0.25,) * 3, 48)

    def test_weights_in_a_file_beside_it_are_taken_along(self, tmp_path: Path) -> None:
        model = onnx.load(save_foreign(tmp_path / "whole.onnx"))
        onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
        network, _ = import_file(tmp_path / "a.onnx", OnnxSettings(), SIZE, *NOTHING)
        (tmp_path / "weights.bin").unlink()
        torch.testing.assert_close(network(images()), colours(images()))
        with pytest.raises(WeightsError, match=r"cannot read .*a\.onnx: .*; give an \.onnx file that is whole"):
            read_onnx(tmp_path / "a.onnx")


class TestWhatIsNoClassifier:
    @pytest.mark.parametrize("content", [b"", b"no onnx file", b"\x08\x08"])
    def test_not_onnx(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.onnx").write_bytes(content)
        with pytest.raises(WeightsError, match=r"cannot read .*a\.onnx: .*; give an \.onnx file that is whole"):
            read_onnx(tmp_path / "a.onnx")

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"answer": ("batch", 3, 4)}, r"its outputs are output \(\?, 3, 4\)"),
            ({"answer": ("batch", 1)}, r"its outputs are output \(\?, 1\)"),
            ({"element": TensorProto.BOOL}, "its input holds bool"),
        ],
    )
    def test_other_outputs_and_inputs(self, tmp_path: Path, options: dict[str, object], reason: str) -> None:
        path = save_foreign(tmp_path / "a.onnx", **options)  # type: ignore[arg-type]
        with pytest.raises(WeightsError, match=f"is no classifier of images: {reason}; give a file that takes one"):
            read_onnx(path)

    def test_no_square(self, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "a.onnx")
        model = onnx.load(path)
        model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 48
        onnx.save(model, path)
        with pytest.raises(WeightsError, match=r"it takes images of 48×32 px, and squares are what it would get"):
            read_onnx(path)

    @pytest.mark.parametrize("channels", [1, 4])
    def test_other_images_than_those_of_three_colours(self, tmp_path: Path, channels: int) -> None:
        path = save_foreign(tmp_path / "a.onnx", channels=channels)
        with pytest.raises(
            WeightsError, match=rf"its input is input \(\?, {channels}, 32, 32\), and images have three"
        ):
            read_onnx(path)

    def test_a_file_of_another_version(self, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "a.onnx")
        model = onnx.load(path)
        model.ir_version = 99
        onnx.save(model, path)
        with pytest.raises(
            WeightsError, match=r"a\.onnx cannot be opened: Unsupported model IR version: 99, .*; export it again, with"
        ):
            import_file(path, OnnxSettings(), SIZE, *NOTHING)

    def test_logits_that_are_called_probabilities(self, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "a.onnx", bias=1.0)
        with pytest.raises(WeightsError, match=r"no probabilities, some are below 0 or above 1; use teacher\.output="):
            import_file(path, OnnxSettings(output="probabilities"), SIZE, *NOTHING)

    def test_probabilities_of_each_class_by_itself_are_asked_about(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = save_foreign(tmp_path / "a.onnx", ending="Sigmoid")
        network, _ = import_file(path, OnnxSettings(), SIZE, *NOTHING)
        assert network.settings.output == "logits"
        assert "they are taken as logits; if they are probabilities of each class" in capsys.readouterr().err
        network, _ = import_file(path, OnnxSettings(output="probabilities"), SIZE, *NOTHING)
        torch.testing.assert_close(network(images()), colours(images()).sigmoid().log(), atol=1e-4, rtol=1e-4)
        assert not capsys.readouterr().err

    def test_another_size_than_its_own(self, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "a.onnx", size=48)
        with pytest.raises(
            WeightsError, match=r"does not answer images of 32 px: .*; give the size that it was made for"
        ):
            import_file(path, OnnxSettings(), SIZE, *NOTHING)

    def test_answers_that_are_not_finite(self, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "a.onnx", bias=float("nan"))
        with pytest.raises(WeightsError, match=r"answers with values that are not finite; export it again"):
            import_file(path, OnnxSettings(), SIZE, *NOTHING)

    def test_settings_that_contradict_it(self, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "a.onnx")
        with pytest.raises(
            WeightsError, match=r"takes images as nchw, teacher.layout is nhwc; leave out teacher.layout"
        ):
            import_file(path, OnnxSettings(layout="nhwc"), SIZE, *NOTHING)
        whole = save_foreign(tmp_path / "b.onnx", element=TensorProto.UINT8)
        with pytest.raises(WeightsError, match=r"takes whole numbers of 0\.\.255"):
            import_file(whole, OnnxSettings(white=255), SIZE, *NOTHING)
        negative = save_foreign(tmp_path / "c.onnx", bias=-20.0)
        with pytest.raises(
            WeightsError, match=r"its answers are no probabilities, some are below 0 or above 1; use teacher.output"
        ):
            import_file(negative, OnnxSettings(output="probabilities"), SIZE, *NOTHING)

    def test_a_file_that_one_message_cannot_hold(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx_file, "LARGEST_BYTES", 100)
        with pytest.raises(WeightsError, match=r"a\.onnx holds more than 2 GB; store its answers in a file"):
            read_onnx(save_foreign(tmp_path / "a.onnx"))


class TestAnswers:
    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    @pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.FLOAT16])
    def test_float_inputs(self, tmp_path: Path, layout: str, element: int) -> None:
        path = save_foreign(tmp_path / "a.onnx", layout=layout, element=element)
        network, _ = import_file(path, OnnxSettings(), SIZE, *NOTHING)
        torch.testing.assert_close(network(images()), colours(images()), atol=5e-3, rtol=1e-3)
        assert network.settings.output == "logits"

    @pytest.mark.parametrize("element", [TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64])
    def test_whole_numbers(self, tmp_path: Path, element: int) -> None:
        path = save_foreign(tmp_path / "a.onnx", layout="nhwc", element=element)
        network, _ = import_file(path, OnnxSettings(), SIZE, *NOTHING)
        rounded = (images() * 255 + 0.5).to(torch.uint8).float()
        torch.testing.assert_close(network(images()), colours(rounded))

    def test_probabilities_become_their_logarithms(self, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "a.onnx", ending="Softmax")
        network, _ = import_file(path, OnnxSettings(), SIZE, *NOTHING)
        assert network.settings.output == "probabilities"
        torch.testing.assert_close(network(images()), colours(images()).log_softmax(1), atol=1e-4, rtol=1e-4)
        kept, _ = import_file(path, OnnxSettings(output="logits"), SIZE, *NOTHING)
        torch.testing.assert_close(kept(images()), colours(images()).softmax(1))

    @pytest.mark.parametrize("batch", [1, 4])
    def test_a_file_for_one_number_of_images_gets_so_many(self, tmp_path: Path, batch: int) -> None:
        path = save_foreign(tmp_path / "a.onnx", batch=batch)
        network, _ = import_file(path, OnnxSettings(), SIZE, *NOTHING)
        for count in (1, 4, 7):
            torch.testing.assert_close(network(images(count)), colours(images(count)))

    def test_a_copy_answers_too(self, tmp_path: Path) -> None:
        network, _ = import_file(save_foreign(tmp_path / "a.onnx"), OnnxSettings(), SIZE, *NOTHING)
        torch.testing.assert_close(copy.deepcopy(network)(images()), network(images()))
        assert network.count_parameters() == 3 * 3 + 3 + 2


class TestClasses:
    OURS = ("apple", "pear", "fig")

    @pytest.mark.parametrize(
        ("theirs", "columns"),
        [
            (("apple", "pear", "fig"), (0, 1, 2)),
            (("fig", "apple", "pear"), (1, 2, 0)),
            (("Fig", "kiwi", "APPLE", "pe-ar"), (2, 3, 0)),
            (("pear", "apple"), (1, 0, -1)),
        ],
    )
    def test_matched_by_name(self, theirs: tuple[str, ...], columns: tuple[int, ...]) -> None:
        assert map_classes(theirs, self.OURS, "it") == columns

    def test_accents_have_two_encodings_and_vowel_signs_count(self) -> None:
        assert map_classes(("CRE\u0300ME", "fig"), ("fig", "cr\u00e8me"), "it") == (1, 0)
        assert map_classes(("\u0915\u093e", "\u0915\u093f", "fig"), ("\u0915\u093f", "\u0915\u093e"), "it") == (1, 0)

    @pytest.mark.parametrize("theirs", [("apple", "pear", "kiwi"), ("a", "b", "c"), ("pear",)])
    def test_neither_more_nor_fewer_is_an_error_that_shows_both(self, theirs: tuple[str, ...]) -> None:
        with pytest.raises(
            WeightsError, match=r"it has the classes .*; the data has apple, pear, fig, and .* among them"
        ):
            map_classes(theirs, self.OURS, "it")

    def test_names_that_are_the_same(self) -> None:
        with pytest.raises(WeightsError, match=r"it has two classes named 'APPLE'"):
            map_classes(("apple", "APPLE", "pear", "figs"), self.OURS, "it")
        with pytest.raises(WeightsError, match=r"the data has two classes named 'C\+\+'"):
            map_classes(("c", "d"), ("C", "C++"), "it")

    def test_names_that_differ_in_marks_alone(self) -> None:
        """Each is matched with itself, if all are there."""
        assert map_classes(("C++", "D", "C"), ("C", "C++"), "it") == (2, 0)

    def test_outputs_in_another_order(self, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "a.onnx", metadata={"names": "{0: 'pear', 1: 'fig', 2: 'apple'}"})
        recipe = Recipe().with_overrides({"teacher.weights": str(path), "teacher.architecture": "onnx", **_SIZES})
        teacher = import_teacher(path, recipe, 3, self.OURS)
        torch.testing.assert_close(teacher.network(images()), colours(images())[:, [2, 0, 1]])

    def test_a_feature_before_the_answer(self, tmp_path: Path) -> None:
        """The output of as many classes as the data has is the answer."""
        path = save_foreign(tmp_path / "a.onnx")
        model = onnx.load(path)
        model.graph.node.append(helper.make_node("Concat", ["mean", "mean"], ["feature"], axis=1))
        model.graph.output.insert(0, helper.make_tensor_value_info("feature", TensorProto.FLOAT, ["batch", 6]))
        onnx.save(model, path)
        recipe = Recipe().with_overrides({"teacher.weights": str(path), **_SIZES})
        teacher = import_teacher(path, recipe, 3, self.OURS)
        torch.testing.assert_close(teacher.network(images()), colours(images()))
        with pytest.raises(WeightsError, match=r"has 6 classes without names, the data has 4"):
            import_teacher(path, recipe, 4, (*self.OURS, "kiwi"))

    def test_settings_of_a_file_need_no_architecture(self, tmp_path: Path) -> None:
        """An ending says it; another file of weights leaves them behind."""
        path = save_foreign(tmp_path / "a.onnx", channels="axis1", size="S")
        plain = Recipe().with_overrides({"teacher.weights": str(path), **_SIZES})
        with pytest.raises(
            WeightsError, match=r"does not say where its input has the colours; give --set teacher\.lay"
        ):
            import_teacher(path, plain, 3, self.OURS)
        given = plain.with_overrides(["teacher.layout=nchw"])
        assert (given.teacher.architecture, given.states("teacher.architecture")) == ("onnx", False)
        torch.testing.assert_close(import_teacher(path, given, 3, self.OURS).network(images()), colours(images()))
        (tmp_path / "r.toml").write_text('[teacher]\nweights = ["a.onnx", "b.onnx"]\nwhite = 255\n')
        assert Recipe.from_toml(tmp_path / "r.toml").teacher.settings["white"] == 255
        other = given.with_overrides({"teacher.weights": "b.safetensors"})
        assert (other.teacher.architecture, other.teacher.settings) == ("resnet18", {})
        with pytest.raises(RecipeError, match=r"unknown key teacher\.layou; did you mean teacher\.layout"):
            plain.with_overrides(["teacher.layou=nchw"])

    def test_a_file_is_not_enlarged_for(self, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "a.onnx")
        recipe = Recipe().with_overrides({"teacher.weights": str(path), "teacher.enlarge": 2, **_SIZES})
        with pytest.raises(
            WeightsError, match=r"teacher\.enlarge = 2 enlarges images for networks of weights, and .*a\.on"
        ):
            import_teacher(path, recipe, 3, self.OURS)

    def test_names_in_a_file(self, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "a.onnx", outputs=4)
        names = tmp_path / "names.txt"
        given = {"teacher.weights": str(path), "teacher.architecture": "onnx", "teacher.classes": str(names), **_SIZES}
        with pytest.raises(WeightsError, match=r"teacher\.classes: cannot read .*names\.txt: No such file"):
            import_teacher(path, Recipe().with_overrides(given), 3, self.OURS)
        for text in (
            "kiwi\nfig\npear\napple\n",
            '["kiwi", "fig", "pear", "apple"]',
            '{"0": "kiwi", "1": "fig", "2": "pear", "3": "apple"}',
            '{"apple": 3, "pear": 2, "fig": 1, "kiwi": 0}',
        ):
            names.write_text(text)
            teacher = import_teacher(path, Recipe().with_overrides(given), 3, self.OURS)
            expected = torch.cat([colours(images()), torch.zeros(5, 1)], 1)[:, [3, 2, 1]]
            torch.testing.assert_close(teacher.network(images()), expected)
        for text in ("", "\n \n", "[1, 2, 3, 4]", '{"1": "kiwi"}'):
            names.write_text(text)
            with pytest.raises(WeightsError, match=r"teacher\.classes: .*names\.txt names no class"):
                import_teacher(path, Recipe().with_overrides(given), 3, self.OURS)
        names.write_text("kiwi\nfig\n")
        with pytest.raises(
            WeightsError, match=r"has 4 outputs, and 2 names are given for them; correct teacher.classes"
        ):
            import_teacher(path, Recipe().with_overrides(given), 3, self.OURS)
        with pytest.raises(
            WeightsError, match=r"has 4 classes without names, the data has 3; give the names of its out"
        ):
            import_teacher(path, Recipe().with_overrides(given | {"teacher.classes": ""}), 3, self.OURS)

    def test_a_class_that_it_does_not_know(self, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "a.onnx", outputs=2, metadata={"names": "{0: 'pear', 1: 'apple'}"})
        recipe = Recipe().with_overrides({"teacher.weights": str(path), "teacher.architecture": "onnx", **_SIZES})
        answers = import_teacher(path, recipe, 3, self.OURS).network(images())
        torch.testing.assert_close(answers[:, :2], colours(images())[:, [1, 0]])
        assert (answers[:, 2] == NEVER).all()


_SIZES = {"data.image_size": SIZE, "data.resize": 36, "data.mean": [0.0] * 3, "data.std": [1.0] * 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_class_folders(tmp_path_factory.mktemp("onnx teacher"), (12, 4, 4))


class TestAllTheWay:
    @pytest.mark.parametrize("ending", ["", "Softmax"])
    def test_import_distillation_export_and_report(
        self, folders: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        names = str(dict(enumerate(("red", "green", "blue"))))
        path = save_foreign(tmp_path / "given.onnx", size="side", ending=ending, metadata={"names": names})
        workspace = toolkit.open(tmp_path / "m", data=folders, settings=SMALL | {"teacher.weights": str(path)})
        teacher = workspace.teacher()
        assert teacher.info.architecture == "onnx"
        assert "3 of its 3 outputs are classes of the data, matched by name" in capsys.readouterr().err
        assert not workspace.teacher().new
        workspace.distill()
        path.unlink()
        results = workspace.export("fp16")
        assert [one.precision for one in results] == ["fp32", "fp32", "fp16"]
        assert results[0].max_logit_difference < 1e-4
        assert "an imported ONNX file keeps its own precision; no fp16" in capsys.readouterr().err
        rows = workspace.bench().rows
        assert [(row.model, row.runtime) for row in rows if row.model == "teacher"] == [("teacher", "onnxruntime")]
        assert rows[0].macs is None
        assert "| – |" in (tmp_path / "m" / "report.md").read_text()

    def test_several_teachers_at_their_own_sizes(self, folders: Path, tmp_path: Path) -> None:
        torch.manual_seed(0)
        first = save_foreign(tmp_path / "a.onnx", size=48, metadata={"names": "{0: 'red', 1: 'green', 2: 'blue'}"})
        trained = toolkit.open(
            tmp_path / "torch",
            data=folders,
            settings=SMALL | {"teacher.architecture": "depthwise", "teacher.epochs": 1},
        )
        second = Path(trained.teacher().path)
        for combine in ("probabilities", "logits"):
            given = {"teacher.weights": [str(first), str(second)], "teacher.combine": combine}
            workspace = toolkit.open(tmp_path / combine, data=folders, settings=SMALL | given, quiet=True)
            made = workspace.teacher()
            assert made.info.preprocess.image_size == 48
            classifier, _ = load_model(Path(made.path))
            pixels = torch.rand(3, 3, 48, 48)
            members = list(classifier.network.members)
            small = torch.nn.functional.interpolate(pixels, size=(32, 32), mode="bilinear", antialias=True)
            with torch.no_grad():
                answers = torch.stack([members[0](pixels), members[1](small)])
                mean = answers.mean(0) if combine == "logits" else answers.softmax(2).mean(0).log()
                torch.testing.assert_close(classifier(pixels), mean, atol=1e-5, rtol=1e-4)
            workspace.distill()
            assert workspace.export()[0].max_logit_difference < 1e-3

    def test_each_of_several_teachers_knows_all_classes(self, folders: Path, tmp_path: Path) -> None:
        """The mean would say that no image is of a class that one of them does not know."""
        paths = [
            save_foreign(tmp_path / f"{count}.onnx", outputs=count, metadata={"names": str(dict(enumerate(names)))})
            for count, names in ((3, ("red", "green", "blue")), (2, ("red", "green")))
        ]
        workspace = toolkit.open(tmp_path / "m", data=folders, settings=SMALL | {"teacher.weights": [*map(str, paths)]})
        with pytest.raises(WeightsError, match=r"2\.onnx\" does not know blue, and cannot be one of several teachers"):
            workspace.teacher()

    def test_images_of_unknown_classes_are_learnt_from_labels(
        self, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = save_foreign(tmp_path / "given.onnx", outputs=2, metadata={"names": "{0: 'red', 1: 'green'}"})
        settings = SMALL | {"teacher.weights": str(path), "distill.teacher_views": 1}
        workspace = toolkit.open(tmp_path / "m", data=folders, settings=settings)
        workspace.distill()
        assert "it does not know blue, whose images are learnt from their labels alone" in capsys.readouterr().err
        refused = settings | {"distill.standardize": True}
        with pytest.raises(
            RecipeError, match=r"distill\.standardize needs a teacher that knows all classes of the data"
        ):
            toolkit.open(tmp_path / "n", data=folders, settings=refused).teacher()
        assert not (tmp_path / "n" / "teacher.safetensors").exists(), "before it is imported"
        more = settings | {"data.unlabelled": [str(folders / "test")]}
        with pytest.raises(RecipeError, match=r"data\.unlabelled needs a teacher that knows all classes of the data"):
            toolkit.open(tmp_path / "o", data=folders, settings=more).teacher()

    def test_layers_of_a_file_cannot_be_read(self, folders: Path, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "given.onnx")
        settings = SMALL | {"teacher.weights": str(path), "distill.method": "kd+attention"}
        workspace = toolkit.open(tmp_path / "m", data=folders, settings=settings, quiet=True)
        with pytest.raises(
            RecipeError, match=r"attention reads the teacher's layers, and an imported ONNX file shows none"
        ):
            workspace.distill()

    def test_answers_that_are_not_finite_on_real_images(self, folders: Path, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "given.onnx", ending="Softmax")
        model = onnx.load(path)
        model.graph.node[-1].op_type = "Log"
        del model.graph.node[-1].attribute[:]
        onnx.save(model, path)
        workspace = toolkit.open(
            tmp_path / "m", data=folders, settings=SMALL | {"teacher.weights": str(path), "teacher.mean": [1.0] * 3}
        )
        with pytest.raises(ToolkitError, match=r"answers .* not finite"):
            workspace.teacher()

    def test_a_file_for_one_image_teaches_but_is_not_exported(
        self, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = save_foreign(tmp_path / "given.onnx", batch=1)
        workspace = toolkit.open(tmp_path / "m", data=folders, settings=SMALL | {"teacher.weights": str(path)})
        workspace.distill()
        capsys.readouterr()
        assert [result.path.name for result in workspace.export()] == ["student.onnx"]
        assert "the teacher is left out, because its ONNX file takes 1 image(s) at a time, no other number" in (
            capsys.readouterr().err
        )
        report = workspace.bench()
        assert {row.model for row in report.rows} == {"student"}
        assert report.no_teacher.endswith("because its ONNX file takes 1 image(s) at a time, no other number.")
        with pytest.raises(
            ToolkitError, match=r"the teacher's ONNX file takes 1 image\(s\) at a time, no other number"
        ):
            export_onnx(tmp_path / "m" / "teacher.safetensors", tmp_path / "a.onnx", ExportOptions(Recipe()))

    def test_a_plan(self, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = save_foreign(tmp_path / "given.onnx")
        flags = ["--data", str(folders), "--out", str(tmp_path / "m"), "--device", "cpu", "--json"]
        for key, value in (SMALL | {"teacher.weights": str(path)}).items():
            flags += ["--set", f"{key}={json.dumps(value)}"]
        app.app(["plan", *flags], standalone_mode=False)
        stages = {stage["name"]: stage for stage in json.loads(capsys.readouterr().out)["stages"]}
        assert stages["bench"]["note"] == "4 rows", "torch cannot run the teacher"

    def test_a_recipe_for_another_teacher(
        self, folders: Path, tmp_path: Path, toolkit_here: Callable[..., Any]
    ) -> None:
        """Its network stays behind, as no file of weights could be put into it."""
        path = save_foreign(tmp_path / "given.onnx")
        (tmp_path / "r.toml").write_text(
            '[data]\nimage_size = 32\nresize = 36\n[teacher]\narchitecture = "depthwise"\nbase = 4\n'
            "[student]\nbase = 4\n[distill]\nepochs = 1\nbatch_size = 12\n"
        )
        flags = ["--recipe", "r.toml", "--data", str(folders), "--out", "m"]
        made = toolkit_here("teacher", *flags, "--weights", str(path), "--device", "cpu")
        assert made.returncode == 0, made.stderr
        following = shlex.split(made.stdout.rpartition("next: toolkit ")[2])
        assert toolkit_here(*following, "--device", "cpu").returncode == 0

    def test_another_architecture_beside_it(self, folders: Path, tmp_path: Path) -> None:
        path = save_foreign(tmp_path / "given.onnx")
        settings = SMALL | {"teacher.weights": str(path), "teacher.architecture": "resnet18"}
        with pytest.raises(WeightsError, match=r"given\.onnx: its architecture is onnx, and the recipe's teacher"):
            toolkit.open(tmp_path / "m", data=folders, settings=settings, quiet=True).teacher()


def test_an_empty_network_holds_no_file() -> None:
    assert OnnxNetwork(OnnxSettings()).content == b""
