"""Networks of timm by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toolkit.distill.teacher import _new_network
from toolkit.errors import RecipeError, WeightsError
from toolkit.networks import families
from toolkit.networks.registry import NetworkSpec, build, find_pretrained
from toolkit.recipe import Recipe

timm = pytest.importorskip("timm")

IMAGENET = ["teacher.weights=imagenet", "data.image_size=64", "data.resize=64"]


@pytest.mark.parametrize(("name", "size"), [("test_vit", 48), ("test_resnet", 40), ("test_efficientnet", 64)])
def test_a_network_is_timms_for_any_size(name: str, size: int) -> None:
    torch.manual_seed(0)
    ours = build(f"timm:{name}", 5, image_size=size).eval()
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=5, **({"img_size": size} if "vit" in name else {})).eval()
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_arguments_are_timms() -> None:
    network = NetworkSpec("timm:test_resnet", {"arguments": {"drop_rate": 0.3}}).build(5, 32)
    assert network.drop_rate == 0.3


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained", "num_classes", "pretrained_cfg_overlay"])
def test_arguments_that_would_read_files_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"the toolkit itself decides timm's {name}; leave it out of arguments"):
        NetworkSpec("timm:test_resnet", {"arguments": {name: "x"}}).build(5)


@pytest.mark.parametrize(
    ("name", "guess"),
    [("convnext_ato", r"did you mean timm:convnext_atto"), ("resnet18.nobodys", ""), ("hf-hub:timm/resnet18", "")],
)
def test_unknown_names(name: str, guess: str) -> None:
    with pytest.raises(
        RecipeError, match=rf"timm has no network '{name}'; {guess}.*timm.list_models\(\) has all names"
    ):
        build(f"timm:{name}", 3)


def test_a_tag_is_part_of_the_name() -> None:
    assert build("timm:resnet18.a1_in1k", 3, image_size=32)(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_a_size_that_it_refuses() -> None:
    with pytest.raises(RecipeError, match=r"timm:test_maxvit cannot take images of 50 px \(data.image_size\): "):
        build("timm:test_maxvit", 3, image_size=50)


def test_without_timm_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError) as missing:
        build("timm:test_vit", 3)
    assert str(missing.value) == (
        "timm:test_vit needs the package timm, which is not installed; pip install 'kd-toolkit[timm]'"
    )


class TestPretrained:
    @pytest.fixture(autouse=True)
    def _torchs_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    @pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
    def test_the_file_in_torchs_folder_is_taken_with_its_normalisation(self, name: str, tmp_path: Path) -> None:
        published = timm.create_model(name, num_classes=1000)
        tag = timm.get_pretrained_cfg(name).tag
        (tmp_path / "checkpoints").mkdir()
        save_file(published.state_dict(), tmp_path / "checkpoints" / f"{name}.{tag}.safetensors")
        recipe = Recipe().with_overrides([*IMAGENET, f"teacher.architecture=timm:{name}"])
        teacher = _new_network(recipe, 5)
        own, theirs = teacher.network.state_dict(), published.state_dict()
        same = [key for key in own if own[key].shape == theirs[key].shape and torch.equal(own[key], theirs[key])]
        assert len(same) >= len(own) - 3, "all but the head, and the places of a ViT at another size"
        assert teacher.mean == timm.get_pretrained_cfg(name).mean
        assert teacher.std == timm.get_pretrained_cfg(name).std

    def test_no_network_says_where_to_put_which_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(*_: object, **__: object) -> None:
            raise OSError("no route")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
        recipe = Recipe().with_overrides([*IMAGENET, "teacher.architecture=timm:convnext_atto"])
        with pytest.raises(
            WeightsError,
            match=r"cannot download https://huggingface.co/timm/convnext_atto.d2_in1k/resolve/main/model.safetensors:"
            r" no route; put that file into .*checkpoints, as convnext_atto.d2_in1k.safetensors, or use teacher.w",
        ):
            _new_network(recipe, 5)

    def test_a_network_without_published_weights(self) -> None:
        published = {name.partition(".")[0] for name in timm.list_pretrained()}
        name = next(name for name in timm.list_models() if name not in published)
        with pytest.raises(WeightsError, match=rf"there are no ImageNet weights for timm:{name}; use teacher.weights"):
            find_pretrained(NetworkSpec(f"timm:{name}"), 224)
