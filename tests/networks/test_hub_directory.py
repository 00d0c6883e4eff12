"""Directories as Hugging Face has them: what they say, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_directories import CLASSES, TINY_RESNET, TINY_VIT, make_timm_directory, make_transformers_directory
from safetensors.torch import load_file, save_file

from toolkit.distill.provenance import find_weights, follow_source
from toolkit.errors import RecipeError, WeightsError
from toolkit.networks.hub_directory import HubDirectory, read_directory
from toolkit.networks.registry import NetworkSpec, build, spec_of
from toolkit.networks.weights import import_teacher
from toolkit.recipe import Recipe

NAMES = dict(enumerate(CLASSES))


def describe(folder: Path, config: dict[str, Any], preprocessor: dict[str, Any] | None = None) -> HubDirectory:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").touch()
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return read_directory(folder)


def follow(folder: Path, *overrides: str) -> Recipe:
    settings = [f"teacher.weights={json.dumps(str(folder))}", "data.image_size=32", "data.resize=32", *overrides]
    return follow_source(Recipe().with_overrides(settings))


class TestTimm:
    def test_everything_that_it_says(self, tmp_path: Path) -> None:
        cfg = {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
        config = {"architecture": "resnet18", "label_names": list(CLASSES), "pretrained_cfg": cfg}
        said = describe(tmp_path, config | {"model_args": {"drop_rate": 0.5, "img_size": 64}})
        assert said == HubDirectory(
            tmp_path / "model.safetensors",
            "timm:resnet18",
            {"arguments": {"drop_rate": 0.5}},
            (0.1, 0.2, 0.3),
            (0.4, 0.5, 0.6),
            64,
            CLASSES,
        )

    def test_the_flat_layout_of_earlier_versions(self, tmp_path: Path) -> None:
        said = describe(tmp_path, {"architecture": "resnet18", "input_size": [3, 64, 64], "mean": [0.5], "labels": []})
        assert (said.architecture, said.image_size, said.mean, said.classes) == ("timm:resnet18", 64, (0.5,) * 3, None)

    def test_a_directory_that_says_little(self, tmp_path: Path) -> None:
        said = describe(tmp_path, {"architecture": "resnet18", "pretrained_cfg": None})
        assert (said.mean, said.std, said.image_size, said.classes) == (None, None, None, None)

    def test_the_network_is_timms_with_those_weights(self, tmp_path: Path) -> None:
        folder = make_timm_directory(tmp_path / "hub")
        recipe = follow(folder)
        assert find_weights(recipe) == folder / "model.safetensors"
        teacher = import_teacher(folder / "model.safetensors", recipe, 3, CLASSES)
        assert (teacher.mean, teacher.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
        assert (teacher.image_size, teacher.classes) == (32, CLASSES)
        own = teacher.network.state_dict()
        assert all(torch.equal(own[name], value) for name, value in load_file(folder / "model.safetensors").items())

    def test_a_pickle_is_read_as_tensors_alone(self, tmp_path: Path) -> None:
        folder = make_timm_directory(tmp_path / "hub")
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
        assert import_teacher(folder / "pytorch_model.bin", follow(folder), 3).classes == CLASSES
        torch.save(build("depthwise", 3), folder / "pytorch_model.bin")
        with pytest.raises(WeightsError, match="was refused unread: a pickle can run code"):
            import_teacher(folder / "pytorch_model.bin", follow(folder), 3)

    def test_other_classes_are_refused(self, tmp_path: Path) -> None:
        folder = make_timm_directory(tmp_path / "hub")
        with pytest.raises(
            WeightsError,
            match="the data has blue, green, scarlet, and scarlet is not among them",
        ):
            import_teacher(folder / "model.safetensors", follow(folder), 3, ("blue", "green", "scarlet"))
        teacher = import_teacher(folder / "model.safetensors", follow(folder), 4, (*CLASSES, "white"))
        assert spec_of(teacher.network).columns == (0, 1, 2, -1)


class TestTransformers:
    def test_everything_that_it_says(self, tmp_path: Path) -> None:
        config = TINY_VIT | {"id2label": NAMES, "auto_map": {"AutoConfig": "evil.py"}, "architectures": ["X"]}
        preprocessor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 32, "width": 32}}
        said = describe(tmp_path, config, preprocessor)
        settings = {"config": {key: value for key, value in TINY_VIT.items() if key != "model_type"}}
        file = tmp_path / "model.safetensors"
        assert said == HubDirectory(file, "transformers:vit", settings, (0.5,) * 3, (0.25,) * 3, 32, CLASSES)

    @pytest.mark.parametrize(
        ("preprocessor", "mean", "std"),
        [
            ({"do_normalize": False, "image_mean": [0.5] * 3}, 0.0, 1.0),
            ({"image_mean": [127.0] * 3, "image_std": [128.0] * 3, "do_rescale": False}, 127 / 255, 128 / 255),
            ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, 0.5, 0.5),
            ({"rescale_factor": 1 / 255, "image_mean": [0.4] * 3, "image_std": [0.3] * 3}, 0.4, 0.3),
        ],
    )
    def test_the_normalisation_is_that_of_0_to_1(
        self, preprocessor: dict[str, Any], mean: float, std: float, tmp_path: Path
    ) -> None:
        said = describe(tmp_path, TINY_VIT, preprocessor)
        assert said.mean == pytest.approx((mean,) * 3)
        assert said.std == pytest.approx((std,) * 3)

    @pytest.mark.parametrize(
        ("preprocessor", "size"),
        [
            ({"size": 48}, 48),
            ({"size": {"shortest_edge": 48}}, 48),
            ({"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 48}, "do_center_crop": True}, 48),
            ({"size": [48, 48]}, 48),
            ({}, 32),
        ],
    )
    def test_the_size_is_that_of_the_network_s_input(
        self, preprocessor: dict[str, Any], size: int, tmp_path: Path
    ) -> None:
        assert describe(tmp_path, TINY_VIT, preprocessor).image_size == size

    @pytest.mark.parametrize("labels", [None, {"0": "LABEL_0", "1": "LABEL_1"}, {"1": "a", "2": "b"}, {"0": 3}, []])
    def test_labels_that_name_no_classes(self, labels: object, tmp_path: Path) -> None:
        assert describe(tmp_path, TINY_VIT | {"id2label": labels}).classes is None

    @pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
    def test_the_network_is_transformers_with_those_weights(self, config: dict[str, Any], tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        folder = make_transformers_directory(tmp_path / "hub", config)
        teacher = import_teacher(folder / "model.safetensors", follow(folder), 3, CLASSES)
        own = transformers.AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(teacher.network.eval()(images), own(images).logits)
        assert (teacher.mean, teacher.std, teacher.image_size) == ((0.5,) * 3, (0.25,) * 3, 32)

    def test_weights_that_do_not_fit(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        folder = make_transformers_directory(tmp_path / "hub")
        capfd.readouterr()
        path = folder / "model.safetensors"
        with pytest.raises(WeightsError, match="has 3 classes, 4 are needed"):
            import_teacher(path, follow(folder), 4)
        tensors = load_file(path)
        save_file({name: value for name, value in tensors.items() if "classifier" not in name}, path)
        with pytest.raises(WeightsError, match=r"does not fit ViTForImageClassification: .* is missing"):
            import_teacher(path, follow(folder), 3)
        assert capfd.readouterr().err == "", "transformers' own reports are not ours"

    def test_another_size_than_it_was_made_for_is_named(self, tmp_path: Path) -> None:
        folder = make_transformers_directory(tmp_path / "hub")
        with pytest.raises(
            WeightsError, match=r"was made for images of 32 px, and is to see 64 px; use --set teacher.image_size=32"
        ):
            import_teacher(folder / "model.safetensors", follow(folder, "data.image_size=64", "data.resize=64"), 3)

    @pytest.mark.parametrize("name", ["vitt", "timm_wrapper"])
    def test_types_that_are_no_image_classifiers(self, name: str) -> None:
        pytest.importorskip("transformers")
        with pytest.raises(RecipeError, match=f"transformers has no image classifier of type '{name}'; "):
            build(f"transformers:{name}", 3)

    def test_a_config_that_cannot_be_built(self) -> None:
        pytest.importorskip("transformers")
        with pytest.raises(
            RecipeError, match=r"transformers:vit cannot be built from its config: .*; check config.json"
        ):
            NetworkSpec("transformers:vit", {"config": TINY_VIT | {"hidden_act": "nothing"}}).build(3)

    def test_a_config_reaches_for_no_code_and_no_weights(self) -> None:
        pytest.importorskip("transformers")
        evil = {"_attn_implementation": "kernels-community/x", "auto_map": {"AutoModel": "evil--x"}}
        config = {key: value for key, value in TINY_VIT.items() if key != "model_type"}
        network = NetworkSpec("transformers:vit", {"config": config | evil}).build(3, 32)
        assert not hasattr(network.config, "auto_map")
        assert network.config._attn_implementation in ("sdpa", "eager")


class TestFollowing:
    def test_what_the_recipe_states_stays(self, tmp_path: Path) -> None:
        recipe = follow(make_timm_directory(tmp_path / "hub"), "teacher.mean=[0.0, 0.0, 0.0]")
        assert recipe.teacher.mean == (0.0,) * 3
        assert recipe.teacher.std == (0.2, 0.3, 0.4)
        assert recipe.teacher.architecture == "timm:test_resnet"
        assert follow_source(recipe) == recipe

    def test_a_file_and_a_name_are_not_followed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("imagenet", "fashion-mnist", "food-11"):
            (tmp_path / name).mkdir()
            recipe = Recipe().with_overrides([f"teacher.weights={name}"])
            assert follow_source(recipe) is recipe
        assert follow_source(Recipe()) is not None

    def test_another_architecture_in_the_recipe(self, tmp_path: Path) -> None:
        folder = make_timm_directory(tmp_path / "hub")
        with pytest.raises(
            WeightsError, match=r"architecture is timm:test_resnet, .* a resnet34; use teacher.architecture=timm"
        ):
            follow(folder, "teacher.architecture=resnet34")

    def test_a_recipe_names_a_directory_beside_it(self, tmp_path: Path) -> None:
        (tmp_path / "hub").mkdir()
        (tmp_path / "recipe.toml").write_text('[teacher]\nweights = "hub"\n')
        assert Recipe.from_toml(tmp_path / "recipe.toml").teacher.weights == str(tmp_path / "hub")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "the folder .* has no config.json; give a file of weights, or a folder with config.json and model"),
        ({"config.json": "{}"}, "the folder .* has no model.safetensors or pytorch_model.bin; save the weights"),
        ({"config.json": "{}", "model.safetensors": ""}, r"config.json names no network; it needs .architecture"),
        ({"config.json": "[1]", "model.safetensors": ""}, "cannot read .*config.json: it is not a JSON object"),
        ({"config.json": "{", "model.safetensors": ""}, "cannot read .*config.json: it is not a JSON object"),
    ],
)
def test_folders_that_hold_no_network(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(WeightsError, match=message):
        read_directory(tmp_path)
