"""Weights files: a file that is written comes back, and a damaged, unsafe or unfit one is refused in one line."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from toolkit.data.preprocess import Preprocess
from toolkit.errors import ArtifactError, RecipeError, WeightsError
from toolkit.networks.depthwise import DepthwiseStudent
from toolkit.networks.registry import NetworkSpec, build, enlargement, spec_of
from toolkit.networks.tensor_files import read_tensors
from toolkit.networks.weights import (
    METADATA_KEY,
    ModelInfo,
    carries_info,
    import_teacher,
    load_into,
    load_model,
    read_info,
    save_model,
)
from toolkit.recipe import Recipe

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
NETWORK = NetworkSpec("depthwise", {"base": 2, "width_mult": 0.5})


def make_info(**changes: Any) -> ModelInfo:
    info = ModelInfo(
        role="student",
        network=NETWORK,
        classes=("crème brûlée", "soup", "tea"),
        preprocess=Preprocess(32, 36, MEAN, STD),
        recipe=Recipe().model_dump(mode="json"),
        recipe_sha256="1" * 64,
        dataset_sha256="2" * 64,
        teacher_sha256=None,
        toolkit_version="0.0",
        extra={"valid_accuracy": 0.5},
    )
    return replace(info, **changes)


@pytest.fixture
def student() -> DepthwiseStudent:
    torch.manual_seed(0)
    student = DepthwiseStudent(3, base=2, width_mult=0.5)
    student(torch.rand(4, 3, 32, 32))  # moves the batch-norm statistics away from their start
    return student


@pytest.fixture
def saved(student: DepthwiseStudent, tmp_path: Path) -> Path:
    path = tmp_path / "student.safetensors"
    save_model(path, student, make_info())
    return path


class TestSaveAndLoad:
    def test_round_trip(self, student: DepthwiseStudent, saved: Path) -> None:
        classifier, info = load_model(saved)
        assert info == make_info()
        assert not any(module.training for module in classifier.modules())
        images = torch.rand(2, 3, 32, 32)
        expected = student.eval()((images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
        assert torch.allclose(classifier(images), expected, atol=1e-6)

    def test_memory_layout_and_ties_do_not_matter(self, student: DepthwiseStudent, tmp_path: Path) -> None:
        student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        save_model(tmp_path / "a.safetensors", student, make_info())
        state_dict = read_tensors(tmp_path / "a.safetensors")
        assert all(torch.equal(value, student.state_dict()[name]) for name, value in state_dict.items())
        tied = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        tied[1].weight = tied[0].weight
        save_model(tmp_path / "b.safetensors", tied, make_info())
        assert torch.equal(read_tensors(tmp_path / "b.safetensors")["1.weight"], tied[0].weight)

    def test_the_same_weights_make_the_same_bytes(self, student: DepthwiseStudent, saved: Path) -> None:
        other = saved.with_name("other.safetensors")
        save_model(other, student, make_info())
        assert saved.read_bytes() == other.read_bytes()
        header = json.loads(saved.read_bytes()[8 : 8 + struct.unpack("<Q", saved.read_bytes()[:8])[0]])
        assert list(header["__metadata__"]) == [METADATA_KEY]  # several entries come out in any order

    def test_halved_files_answer_alike_and_keep_what_half_precision_cannot_hold(
        self, student: DepthwiseStudent, saved: Path, tmp_path: Path
    ) -> None:
        student.cnn[0][1].running_var.fill_(1e6)  # half precision ends at 65,504
        for halved in (False, True):
            save_model(tmp_path / f"{halved}.safetensors", student, make_info(), halved=halved)
        whole, smaller = (read_tensors(tmp_path / f"{halved}.safetensors") for halved in (False, True))
        assert {value.dtype for value in smaller.values() if value.ndim > 1} == {torch.float16}
        assert all(torch.equal(value, whole[name]) for name, value in smaller.items() if value.ndim < 2)
        networks = [load_model(tmp_path / f"{halved}.safetensors")[0] for halved in (False, True)]
        assert {parameter.dtype for parameter in networks[1].parameters()} == {torch.float32}
        images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            logits = [network(images) for network in networks]
        assert 0 < (logits[0] - logits[1]).abs().max() < 0.01
        assert (logits[0].argmax(1) == logits[1].argmax(1)).float().mean() > 0.95

    def test_networks_are_rebuilt_at_their_image_size(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A vision transformer's position embedding depends on it; 32 px is not torchvision's default."""
        asked: list[object] = []
        real = NetworkSpec.build

        def spy(spec: NetworkSpec, *data: int) -> torch.nn.Module:
            asked.extend((spec, *data))
            return real(spec, *data)

        monkeypatch.setattr(NetworkSpec, "build", spy)
        load_model(saved)
        assert asked == [NETWORK, 3, 32]

    def test_a_network_that_enlarges_its_images_comes_back_as_one(self, tmp_path: Path) -> None:
        network = build("depthwise", 3, base=2, width_mult=0.5, image_size=32, enlarge=2).eval()
        path = tmp_path / "teacher.safetensors"
        save_model(path, network, make_info(network=replace(NETWORK, enlarge=2)))
        loaded, info = load_model(path)
        assert info.network.enlarge == enlargement(loaded.network) == 2
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(loaded.network(images), network(images))

    def test_files_of_earlier_versions_enlarge_nothing(self) -> None:
        values = json.loads(make_info().to_json())
        del values["enlarge"]
        assert ModelInfo.from_json(json.dumps(values)).network.enlarge == 1

    def test_settings_stand_where_other_versions_look_for_them(self) -> None:
        """`base` and `width_mult` beside the architecture, which earlier versions want there for every network."""
        depthwise = json.loads(make_info().to_json())
        assert (depthwise["base"], depthwise["width_mult"], depthwise["enlarge"]) == (2, 0.5, 1)
        resnet = make_info(network=NetworkSpec("resnet18"))
        values = json.loads(resnet.to_json())
        assert (values["base"], values["width_mult"]) == (16, 1.0)
        assert "settings" not in depthwise.keys() | values.keys()
        earlier = json.dumps(values | {"base": 8})  # the student's, once
        assert ModelInfo.from_json(earlier) == ModelInfo.from_json(resnet.to_json()) == resnet

    def test_a_file_of_a_network_that_nobody_registered_can_be_looked_into_and_not_opened(
        self, student: DepthwiseStudent, tmp_path: Path
    ) -> None:
        info = make_info(network=NetworkSpec("elsewhere", {"size": 3}))
        path = tmp_path / "student.safetensors"
        save_model(path, student, info)
        assert read_info(path) == info
        with pytest.raises(RecipeError, match=r"unknown architecture 'elsewhere'; .*or a network that you registered"):
            load_model(path)

    def test_an_unwritable_place(self, student: DepthwiseStudent, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ArtifactError, match="cannot write"):
            save_model(tmp_path / "file" / "student.safetensors", student, make_info())

    def test_info_is_read_without_tensors(self, saved: Path, tmp_path: Path) -> None:
        assert read_info(saved) == make_info()
        assert carries_info(saved)
        bare = tmp_path / "bare.safetensors"
        save_file({"a": torch.zeros(1)}, bare)
        assert not carries_info(bare)
        with pytest.raises(WeightsError, match="carries no description of its network"):
            read_info(bare)
        torch.save({"a": torch.zeros(1)}, tmp_path / "bare.bin")
        with pytest.raises(WeightsError, match=r"bare\.bin carries no description"):
            load_model(tmp_path / "bare.bin")

    @pytest.mark.parametrize("content", [b"\x00\x01", b"{}", b"not weights at all"])
    def test_what_is_left_of_a_file_is_damaged(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "student.safetensors"
        path.write_bytes(content)
        for read in (read_info, carries_info, read_tensors):
            with pytest.raises(
                WeightsError, match=r"student\.safetensors: it is damaged, or not a file of safetensors"
            ):
                read(path)

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"preprocess": {}, "classes": []}'])
    def test_a_description_that_is_not_ours(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "odd.safetensors"
        save_file({"a": torch.zeros(1)}, path, {METADATA_KEY: text})
        with pytest.raises(WeightsError) as info:
            read_info(path)
        assert "\n" not in str(info.value)


class TestLoadInto:
    PATH = Path("given.bin")

    def fails(self, network: torch.nn.Module, weights: dict[str, torch.Tensor], num_classes: int) -> str:
        with pytest.raises(WeightsError) as info:
            load_into(network, weights, self.PATH, num_classes)
        assert "\n" not in str(info.value)
        return str(info.value)

    @pytest.mark.parametrize("architecture", ["depthwise", "resnet18", "squeezenet1_1"])
    def test_class_counts(self, architecture: str) -> None:
        weights = build(architecture, 10).state_dict()
        message = self.fails(build(architecture, 11), weights, 11)
        assert "given.bin has 10 classes, 11 are needed" in message

    def test_other_misfits(self, student: DepthwiseStudent) -> None:
        weights = student.state_dict()
        other = build("resnet18", 3)
        assert "does not fit ResNet: conv1.weight is missing (" in self.fails(other, weights, 3)
        more = weights | {"extra.weight": torch.zeros(1)}
        assert "extra.weight is unexpected (0 keys missing, 1 unexpected)" in self.fails(student, more, 3)
        wide = DepthwiseStudent(3, base=4, width_mult=0.5)
        assert "cnn.0.0.weight is (2, 3, 3, 3) instead of (4, 3, 3, 3)" in self.fails(wide, weights, 3)
        broken = weights | {"fc.0.bias": torch.tensor([0.0, float("nan"), 0.0])}
        assert "fc.0.bias holds values that are not finite" in self.fails(student, broken, 3)
        broken = weights | {"cnn.0.1.running_var": torch.tensor([1.0, -1e-3])}
        assert "cnn.0.1.running_var holds negative variances; train or" in self.fails(student, broken, 3)

    def test_nothing_is_loaded_on_failure(self, student: DepthwiseStudent) -> None:
        before = {name: value.clone() for name, value in student.state_dict().items()}
        weights = DepthwiseStudent(3, base=2, width_mult=0.5).state_dict() | {"fc.0.bias": torch.full((3,), torch.inf)}
        self.fails(student, weights, 3)
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())

    def test_old_files_without_counters(self, student: DepthwiseStudent) -> None:
        weights = {k: v for k, v in student.state_dict().items() if not k.endswith("num_batches_tracked")}
        other = DepthwiseStudent(3, base=2, width_mult=0.5)
        load_into(other, weights, self.PATH, 3)
        assert torch.equal(other.cnn[0][1].running_mean, student.cnn[0][1].running_mean)


class TestImportTeacher:
    DATA = ("data.mean=[0.4, 0.4, 0.4]", "data.std=[0.2, 0.2, 0.2]", "data.image_size=32")
    OWN = ("teacher.mean=[0.7, 0.7, 0.7]", "teacher.std=[0.9, 0.9, 0.9]")

    def test_the_notebooks_layout_takes_the_datas_normalisation(self, tmp_path: Path) -> None:
        path = tmp_path / "teacher_resnet18.bin"
        torch.manual_seed(0)
        weights = build("resnet18", 11).state_dict()
        torch.save(weights, path)
        teacher = import_teacher(path, Recipe().with_overrides(self.DATA), 11)
        assert all(torch.equal(value, weights[name]) for name, value in teacher.network.state_dict().items())
        assert (teacher.mean, teacher.std) == ((0.4,) * 3, (0.2,) * 3)
        assert (teacher.image_size, teacher.classes) == (None, None)
        with pytest.raises(WeightsError, match=r"has 11 classes, 10 are needed \(fc\.weight\)"):
            import_teacher(path, Recipe().with_overrides(self.DATA), 10)

    def recipe(self, *more: str) -> Recipe:
        same = ("teacher.architecture=depthwise", "teacher.base=2", "teacher.width_mult=0.5")
        return Recipe().with_overrides([*self.DATA, *same, *more])

    def test_the_files_own_normalisation_comes_before_the_datas(self, saved: Path) -> None:
        teacher = import_teacher(saved, self.recipe(), 3)
        assert (teacher.mean, teacher.std) == (MEAN, STD)
        assert (teacher.image_size, teacher.classes) == (32, ("crème brûlée", "soup", "tea"))

    def test_the_recipes_normalisation_comes_first(self, saved: Path) -> None:
        teacher = import_teacher(saved, self.recipe(*self.OWN), 3)
        assert (teacher.mean, teacher.std) == ((0.7,) * 3, (0.9,) * 3)

    def test_the_files_own_enlargement_unless_the_recipe_has_one(self, student: DepthwiseStudent, saved: Path) -> None:
        assert enlargement(import_teacher(saved, self.recipe(), 3).network) == 1
        save_model(saved, student, make_info(network=replace(NETWORK, enlarge=2)))
        assert enlargement(import_teacher(saved, self.recipe(), 3).network) == 2
        assert enlargement(import_teacher(saved, self.recipe("teacher.enlarge=3"), 3).network) == 3

    def test_the_files_own_settings_unless_the_recipe_states_others(self, saved: Path) -> None:
        recipe = Recipe().with_overrides([*self.DATA, "teacher.architecture=depthwise"])
        network = import_teacher(saved, recipe, 3).network
        assert spec_of(network) == NETWORK
        with pytest.raises(
            WeightsError, match=r"does not fit DepthwiseStudent: cnn\.0\.0\.weight is \(2, 3, 3, 3\) inst"
        ):
            import_teacher(saved, recipe.with_overrides(["teacher.base=4"]), 3)

    def test_another_architecture_or_other_classes(self, saved: Path) -> None:
        with pytest.raises(WeightsError, match=r"is a depthwise, the recipe's teacher a resnet18; use teacher\.arch"):
            import_teacher(saved, Recipe().with_overrides(self.DATA), 3)
        with pytest.raises(WeightsError, match="has a class 'soup', the data has 'broth' in its place"):
            import_teacher(saved, self.recipe(), 3, ("crème brûlée", "broth", "tea"))
        assert import_teacher(saved, self.recipe(), 3, ("crème brûlée", "soup", "tea")).mean == MEAN


def test_an_empty_file_is_no_weights_file(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pth"
    path.touch()
    with pytest.raises(
        WeightsError, match=r"cannot read weights from .*teacher.pth: it is empty \(0 bytes\); give a complete"
    ):
        read_tensors(path)
