"""A network's weights among a file's tensors, under whatever names scripts put them."""

import argparse
import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision import models

from toolkit.errors import WeightsError
from toolkit.networks.matching import match
from toolkit.networks.registry import build
from toolkit.networks.tensor_files import read_tensors
from toolkit.networks.weights import load_into

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """With names like torchvision's: some are the ends of others."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.layer1 = nn.Sequential(Block(), Block())
            self.fc = nn.Linear(4, 3)

    return Small()


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: value for name, value in state.items()}


def other_values(state: Mapping[str, Tensor]) -> State:
    return {name: value + 1 for name, value in state.items()}


FORMS: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda s: s, ""),
    "state_dict": (lambda s: {"epoch": 3, "state_dict": s}, "the weights under state_dict"),
    "DataParallel": (lambda s: prefixed("module.", s), "the weights under module"),
    "kuangliu": (lambda s: {"net": prefixed("module.", s), "acc": 93.1}, "the weights under net.module"),
    "torch.compile": (lambda s: prefixed("_orig_mod.", s), "the weights under _orig_mod"),
    "compile and DDP": (lambda s: prefixed("_orig_mod.module.", s), "the weights under _orig_mod.module"),
    "DDP and compile": (lambda s: {"m": prefixed("module._orig_mod.", s)}, "the weights under m.module._orig_mod"),
    "Lightning": (
        lambda s: {
            "state_dict": prefixed("model.", s) | {"criterion.weight": torch.ones(3)},
            "hyper_parameters": {"lr": 0.1},
            "callbacks": {argparse.Namespace: {"best": torch.tensor(0.5)}},
        },
        "the weights under state_dict.model",
    ),
    "torchvision": (lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)}, "the weights under model"),
    "Accelerate": (lambda s: [s, {"step": 3}], "the weights under 0"),
    "fastai": (lambda s: {"model": s, "opt": {"state": [{"mom": torch.ones(3)}]}}, "the weights under model"),
    "DeepSpeed": (lambda s: {"module": s, "optimizer": {"exp_avg": [torch.ones(3)]}}, "the weights under module"),
    "own names": (lambda s: {"run": {"best": prefixed("encoder.", s)}}, "the weights under run.best.encoder"),
    "a profiler's": (lambda s: s | {"total_ops": torch.ones(1), "layer1.0.total_params": torch.ones(1)}, ""),
    "without counters": (lambda s: {name: value for name, value in s.items() if "num_batches" not in name}, ""),
    "a part compiled": (
        lambda s: {name.replace("layer1.", "layer1._orig_mod."): value for name, value in s.items()},
        "the weights without _orig_mod",
    ),
    "a part in parallel": (
        lambda s: {"net": {name.replace("layer1.", "layer1.module."): value for name, value in s.items()}},
        "the weights under net without module",
    ),
    "body and head": (
        lambda s: {"sd": {("head." if name.startswith("fc") else "backbone.") + name: v for name, v in s.items()}},
        "the weights without sd.backbone and sd.head",
    ),
    "a wrapped body": (
        lambda s: {name if name.startswith("fc") else f"module.{name}": value for name, value in s.items()},
        "the weights without module",
    ),
    "teacher beside a smaller one": (
        lambda s: prefixed("student.", {"conv1.weight": torch.ones(1)}) | prefixed("teacher.", s),
        "the weights under teacher",
    ),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_forms_in_which_scripts_save(
    network: nn.Module, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, taken_off = FORMS[form]
    path = tmp_path / "c.pth"
    torch.save(make(other_values(network.state_dict())), path)
    load_and_compare(network, path)
    said = capsys.readouterr().err
    assert said == (f"{path}: took {taken_off}\n" if taken_off else "")


def load_and_compare(network: nn.Module, path: Path) -> None:
    """The file holds the network's values plus one."""
    filled = copy.deepcopy(network)
    load_into(filled, read_tensors(path), path, 3)
    for name, value in filled.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(value, network.state_dict()[name] + 1), name


def test_an_averaged_model(network: nn.Module, tmp_path: Path) -> None:
    average = AveragedModel(network)
    average.module.load_state_dict(other_values(network.state_dict()))
    torch.save({"ema": average.state_dict()}, tmp_path / "ema.pth")
    load_and_compare(network, tmp_path / "ema.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "backbone.net."])
def test_safetensors_have_prefixes_too(network: nn.Module, tmp_path: Path, prefix: str) -> None:
    save_file(prefixed(prefix, other_values(network.state_dict())), tmp_path / "c.safetensors")
    load_and_compare(network, tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("plain", "average"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"), ("net", "swa_model"), ("a", "EMA.b")],
)
@pytest.mark.parametrize("first", ["plain", "average"])
def test_an_average_comes_before_the_last_step_and_both_are_named(
    network: nn.Module, tmp_path: Path, plain: str, average: str, first: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {plain: network.state_dict(), average: other_values(network.state_dict())}
    torch.save(
        {name: parts[name] for name in sorted(parts, reverse=(first == "plain") == (plain < average))},
        tmp_path / "c.pth",
    )
    load_and_compare(network, tmp_path / "c.pth")
    assert f"took the weights under {average} (there are others under {plain})" in capsys.readouterr().err


def test_of_two_networks_it_is_the_one_that_fits(tmp_path: Path) -> None:
    narrow, wide = build("depthwise", 3, base=2), build("depthwise", 3, base=4)
    torch.save({"teacher": wide.state_dict(), "student": narrow.state_dict()}, tmp_path / "c.pth")
    for network in (narrow, wide):
        load_into(network, read_tensors(tmp_path / "c.pth"), tmp_path / "c.pth", 3)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_heads_of_training_alone_are_left_out(name: str) -> None:
    with torch.device("meta"):
        whole = models.get_model(name, num_classes=5, aux_logits=True, init_weights=False).state_dict()
        own = build(name, 5).state_dict()
    found = match(prefixed("module.", whole), own)
    assert found is not None
    assert found.tensors.keys() == own.keys()
    assert (
        found.describe()
        == {
            "googlenet": "the weights under module without aux1 and aux2",
            "inception_v3": "the weights under module without AuxLogits",
        }[name]
    )


def refused(network: nn.Module, content: State) -> str:
    with pytest.raises(WeightsError) as caught:
        load_into(network, content, Path("c.pth"), 3)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestNothingFits:
    @pytest.fixture(autouse=True)
    def _few_classifiers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """To try all of torchvision's takes seconds."""
        names = ["alexnet", "regnet_y_400mf", "resnet18", "resnet34", "resnet50", "resnext50_32x4d"]
        monkeypatch.setattr("toolkit.networks.registry._classifiers", lambda: names)

    def test_a_larger_network_is_none(self, network: nn.Module) -> None:
        """All names are there with the right shapes, as in a ResNet34 for a ResNet18."""
        state = network.state_dict()
        more = state | {"layer1.2.conv1.weight": torch.ones(4, 4, 3, 3)}
        assert "c.pth does not fit Small: layer1.2.conv1.weight is unexpected (0 keys missing, 1" in refused(
            network, more
        )
        under = refused(network, prefixed("net.module.", more))
        assert "net.module.layer1.2.conv1.weight is unexpected (0 keys missing, 1 unexpected)" in under
        assert match(prefixed("a.", more), state) is None
        with torch.device("meta"):
            own, larger = (models.get_model(name, num_classes=3).state_dict() for name in ("resnet18", "resnet34"))
        assert match(larger, own) is None
        assert match(prefixed("backbone.", larger), own) is None

    def test_what_is_missing_is_named_as_in_the_file(self, network: nn.Module) -> None:
        state = dict(network.state_dict())
        del state["layer1.1.conv1.weight"]
        message = refused(network, prefixed("net.", state))
        assert "net.layer1.1.conv1.weight is missing (1 keys missing, 0 unexpected)" in message

    def test_another_shape_is_named_as_in_the_file(self, network: nn.Module) -> None:
        state = network.state_dict() | {"conv1.weight": torch.ones(4, 1, 3, 3)}
        assert "net.conv1.weight is (4, 1, 3, 3) instead of (4, 3, 3, 3)" in refused(network, prefixed("net.", state))

    def test_parts_that_are_there_twice_are_none(self, network: nn.Module) -> None:
        state = network.state_dict()
        twice = prefixed("a.", state) | prefixed("b.", {"fc.weight": state["fc.weight"]})
        del twice["a.fc.bias"]
        assert match(twice, state) is None

    def test_the_architecture_that_it_is_of_is_named(self) -> None:
        weights = prefixed("model.", build("resnet34", 5).state_dict())
        message = refused(build("resnet18", 3), weights)
        assert message.endswith("; they are those of resnet34: use --set teacher.architecture=resnet34")
        small = refused(
            build("resnet18", 3), {"net." + k: v for k, v in build("depthwise", 3, base=2).state_dict().items()}
        )
        assert small.endswith(
            "use --set teacher.architecture=depthwise --set teacher.base=2 --set teacher.width_mult=1.0"
        )

    def test_a_network_of_the_same_names_is_known_by_its_shapes(self) -> None:
        with torch.device("meta"):
            weights = build("resnext50_32x4d", 3).state_dict()
        assert refused(build("resnet50", 3), weights).endswith("teacher.architecture=resnext50_32x4d")

    def test_of_an_unknown_network_the_remedy_is_general(
        self, network: nn.Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("toolkit.networks.registry._classifiers", lambda: ["alexnet", "regnet_y_400mf"])
        weights = {f"{number}.weight": torch.ones(1) for number in range(20)}
        assert refused(network, weights).endswith("(teacher.architecture, student.architecture)")


def renamed(state: Mapping[str, Tensor], old: str, new: str) -> State:
    return {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in state.items()}


class TestHeads:
    """`network.fc = nn.Sequential(nn.Dropout(), nn.Linear(512, 3))` and its like."""

    @pytest.mark.parametrize("prefix", ["", "module.", "state_dict.model."])
    @pytest.mark.parametrize("name", ["fc.0", "fc.1", "fc.2.1"])
    def test_another_number_is_taken_and_said(
        self, network: nn.Module, prefix: str, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        state = prefixed(prefix, renamed(other_values(network.state_dict()), "fc", name))
        filled = copy.deepcopy(network)
        load_into(filled, state, Path("c.pth"), 3)
        assert torch.equal(filled.fc.weight, network.fc.weight + 1)
        assert torch.equal(filled.conv1.weight, network.conv1.weight + 1)
        under = f" under {prefix.rstrip('.')}" if prefix else ""
        assert capsys.readouterr().err == f"c.pth: took the weights{under}, {name} for fc\n"

    @pytest.mark.parametrize(
        ("architecture", "ours", "theirs"),
        [
            ("mobilenet_v2", "classifier.1", "classifier"),
            ("mobilenet_v2", "classifier.1", "classifier.0"),
            ("efficientnet_b0", "classifier.1", "classifier.1.1"),
            ("vgg11", "classifier.6", "classifier.6.1"),
            ("densenet121", "classifier", "classifier.1"),
            ("shufflenet_v2_x0_5", "fc", "fc.1"),
            ("vit_b_32", "heads.head", "heads.head.1"),
            ("swin_t", "head", "head.1"),
        ],
    )
    def test_of_torchvision(self, architecture: str, ours: str, theirs: str) -> None:
        with torch.device("meta"):
            own = build(architecture, 3, image_size=32).state_dict()
        found = match(renamed(own, f"{ours}.", f"{theirs}."), own)
        assert found is not None
        assert found.tensors.keys() == own.keys()
        assert found.describe() == f"the weights, {theirs} for {ours}"

    def test_other_classes_are_still_refused(self, network: nn.Module) -> None:
        state = renamed(network.state_dict(), "fc", "fc.1") | {
            "fc.1.weight": torch.ones(5, 4),
            "fc.1.bias": torch.ones(5),
        }
        assert "c.pth has 5 classes, 3 are needed" in refused(network, state)

    def test_another_input_or_another_layer_is_none(self, network: nn.Module) -> None:
        own = network.state_dict()
        assert match(renamed(own, "fc", "fc.1") | {"fc.1.weight": torch.ones(3, 9)}, own) is None
        assert match(renamed(own, "conv1", "conv1.1"), own) is None
        assert match(renamed(own, "fc", "head"), own) is None

    def test_a_head_of_several_layers_is_named(self, network: nn.Module) -> None:
        more = {"fc.3.weight": torch.ones(3, 8), "fc.3.bias": torch.ones(3)}
        state = renamed(network.state_dict(), "fc", "fc.0") | more
        for prefix in ("", "module."):
            message = refused(network, prefixed(prefix, state))
            assert "fc.weight is missing (2 keys missing, 4 unexpected), as its head is fc.0, fc.3; give" in message
            assert "register the network with that head (docs/networks.md)" in message


def test_names_that_are_in_neither_are_not_made_up(network: nn.Module) -> None:
    """As `Sequential(*network.children())` makes them: one layer alone ends as one of the network's."""
    state = {"backbone.0.weight": torch.ones(1), "backbone.2.0.conv1.weight": torch.ones(4, 4, 3, 3)}
    assert "does not fit Small: conv1.weight is missing (" in refused(network, state)


def test_pairs_of_name_and_tensor_are_a_state_dict(network: nn.Module, tmp_path: Path) -> None:
    state = other_values(network.state_dict())
    for form in (list(state.items()), {"net": [list(pair) for pair in state.items()]}):
        torch.save(form, tmp_path / "c.pth")
        load_and_compare(network, tmp_path / "c.pth")
    parameters = [*network.named_parameters(), *network.named_buffers()]
    torch.save(parameters, tmp_path / "c.pth")
    assert read_tensors(tmp_path / "c.pth").keys() == state.keys()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda value: value.numpy(), "is a numpy array, and torch.from_numpy makes it a tensor; save tensors only"),
        (lambda value: value.to_sparse(), "is a sparse tensor, and dense real ones are needed; save tensors only"),
        (lambda value: value.to(torch.complex64), "is a complex tensor, and dense real"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "is a quantized tensor, and dense real"),
    ],
    ids=["numpy", "sparse", "complex", "quantized"],
)
def test_what_is_there_in_another_form_is_not_called_missing(
    network: nn.Module, tmp_path: Path, make: Callable[[Tensor], object], told: str
) -> None:
    state = network.state_dict()
    torch.save({"net": {**state, "fc.weight": make(state["fc.weight"])}}, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match=re.escape(told)) as caught:
        load_into(network, read_tensors(tmp_path / "c.pth"), tmp_path / "c.pth", 3)
    assert "fc.weight is a " in str(caught.value)
