"""Networks of other packages: their code runs with permission alone."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import toolkit
from toolkit.cli import app
from toolkit.errors import RecipeError
from toolkit.networks import trust
from toolkit.networks.registry import NetworkSpec, require_known
from toolkit.networks.weights import load_model, save_model

NAME = "package_of_a_colleague.networks:make"
CODE = """
from torch import nn
RUNS = []
def make(num_classes, width=4):
    RUNS.append(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
def numbers(num_classes):
    return [num_classes]
def failing(num_classes):
    raise KeyError("depth")
def anything(**settings):
    return make(settings["num_classes"], settings["width"])
NOT_CALLABLE = 3
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "lib" / "package_of_a_colleague"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "networks.py").write_text(CODE)
    (folder / "broken.py").write_text("import package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    yield
    for name in [name for name in sys.modules if name.startswith("package_of_a_colleague")]:
        del sys.modules[name]


def build(name: str = NAME, **arguments: object) -> nn.Module:
    with trust.allowing(set()):
        return NetworkSpec(name, {"arguments": arguments} if arguments else {}).build(3, 8)


def test_nothing_is_imported_without_permission() -> None:
    with pytest.raises(RecipeError) as refused:
        NetworkSpec(NAME).build(3)
    assert str(refused.value) == (
        f"the network {NAME} would run code of this machine's packages: make of package_of_a_colleague.networks;"
        " if you trust that code, allow it with --trust (in Python: trust=True)"
    )
    with pytest.raises(RecipeError, match="would run code of this machine's packages"):
        require_known("resnet18", NAME)
    assert not [name for name in sys.modules if name.startswith("package_of_a_colleague")]


def test_one_line_says_once_which_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with trust.allowing(set()):
        assert NetworkSpec(NAME).build(5, 8)(torch.rand(2, 3, 8, 8)).shape == (2, 5)
        NetworkSpec(NAME).build(5)
        assert trust.announced() == [NAME]
    assert capsys.readouterr().err == (
        f"trust: the network {NAME} runs the code of make in package_of_a_colleague.networks\n"
    )
    assert trust.announced() is None, "the permission ends with the body"


def test_the_processes_of_this_one_get_what_it_has() -> None:
    with trust.allowing(None):
        trust.allow([NAME])
        assert trust.announced() == [NAME]
        trust.allow(None)
        assert trust.announced() is None


def test_arguments_reach_the_function() -> None:
    assert build(width=6)[0].out_channels == 6
    assert build("package_of_a_colleague.networks:anything", width=7)[0].out_channels == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package_of_a_colleague.networks:mak", r"has no function mak; did you mean make\? give a function or class"),
        ("package_of_a_colleague.networks:NOT_CALLABLE", "has no function NOT_CALLABLE; "),
        (
            "package_of_a_colleague.broken:make",
            r"cannot be imported: ModuleNotFoundError: No module named 'package_tha",
        ),
        ("package_of_nobody:make", "the module package_of_nobody cannot be imported: ModuleNotFoundError"),
        ("package_of_a_colleague.networks:numbers", "the builder of .* returns a list; it has to return an nn.Module"),
        ("package_of_a_colleague.networks:failing", "cannot be built with .*num_classes=3.*: KeyError: 'depth'"),
    ],
)
def test_what_is_no_network_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(name)


@pytest.mark.parametrize("name", ["a b:c", "package:", ":make", "a.b:c:d", "os;x:y"])
def test_names_of_another_form_are_unknown_whatever_is_allowed(name: str) -> None:
    with pytest.raises(
        RecipeError, match=r"unknown architecture .*; write timm:NAME, transformers:TYPE, or package.mod"
    ):
        build(name)


def test_arguments_that_the_function_does_not_take() -> None:
    with pytest.raises(
        RecipeError, match=r"takes no argument wdth; did you mean width\? it takes: num_classes, width; "
    ):
        build(wdth=3)


def test_weights_of_such_a_network_are_refused_too(tmp_path: Path) -> None:
    from networks.test_weights import make_info

    network = build(width=6)
    path = tmp_path / "teacher.safetensors"
    save_model(path, network, make_info(network=NetworkSpec(NAME, {"arguments": {"width": 6}})))
    with pytest.raises(RecipeError, match="would run code"):
        load_model(path)
    with pytest.raises(RecipeError, match="would run code"):
        toolkit.load(path)
    assert toolkit.load(path, trust=True).classes == ("crème brûlée", "soup", "tea")
    with pytest.raises(RecipeError, match="would run code"):
        toolkit.load(path)


def test_a_recipe_alone_allows_nothing(tmp_path: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[teacher]\narchitecture = "{NAME}"\n[data]\nsource = "{class_folders}"\n')
    with pytest.raises(RecipeError, match="would run code"):
        toolkit.open(tmp_path / "m", recipe=recipe)
    toolkit.open(tmp_path / "m", recipe=recipe, trust=True, quiet=True)
    assert capsys.readouterr().err == ""
    recipe.write_text(recipe.read_text() + "[training]\ntrust = true\n")
    with pytest.raises(RecipeError, match=r"unknown key training\.trust"):
        toolkit.open(tmp_path / "m", recipe=recipe)


def test_the_commands_take_the_permission_and_hand_it_on(
    tmp_path: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(class_folders), "--out", str(tmp_path / "m"), "--device", "cpu"]
    settings = [f"teacher.architecture={NAME}", "teacher.epochs=1", "data.image_size=32", "data.resize=32"]
    flags += [word for setting in settings for word in ("--set", setting)]
    with pytest.raises(RecipeError, match="would run code"):
        app.app(["teacher", *flags], standalone_mode=False)
    capsys.readouterr()
    app.app(["teacher", *flags, "--trust"], standalone_mode=False)
    said = capsys.readouterr()
    assert said.err.count("runs the code of make") == 1
    assert said.out.rstrip().endswith("--trust")
    with pytest.raises(RecipeError, match="would run code"):
        app.app(["teacher", *flags, "--force"], standalone_mode=False)
