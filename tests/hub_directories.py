"""Directories as Hugging Face has them, made here with random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

CLASSES = ("blue", "green", "red")
TINY_VIT = {
    "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8, "num_channels": 3,
}  # fmt: skip
TINY_RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    "num_channels": 3,
}  # fmt: skip


def spread_head(network: nn.Module) -> None:
    """Let the last linear layer tell images apart: many networks begin it with zeros."""
    heads = [module for module in network.modules() if isinstance(module, nn.Linear)]
    nn.init.normal_(heads[-1].weight, std=0.5)


def make_timm_directory(path: Path, name: str = "test_resnet", **changes: Any) -> Path:
    """As timm's save_for_hf writes it."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=len(CLASSES), **changes.get("model_args", {}))
    spread_head(network)
    path.mkdir(parents=True)
    cfg = {"input_size": [3, 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    config = {"architecture": name, "num_classes": len(CLASSES), "label_names": list(CLASSES), "pretrained_cfg": cfg}
    (path / "config.json").write_text(json.dumps(config | changes))
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path / "model.safetensors")
    return path


def make_transformers_directory(path: Path, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    """As transformers' save_pretrained writes it, of a network and its preprocessor."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = config or TINY_VIT
    names = {str(number): name for number, name in enumerate(CLASSES)}
    made = transformers.AutoConfig.for_model(**config, id2label=names, label2id={n: int(i) for i, n in names.items()})
    network = transformers.AutoModelForImageClassification.from_config(made)
    spread_head(network)
    network.save_pretrained(path)
    preprocessor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 32, "width": 32}}
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor | changes))
    return path
