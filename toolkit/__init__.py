"""kd-toolkit: distil an image classifier into a small one, export it to ONNX with proof, benchmark it, show it."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.api.model import Model, load
    from toolkit.api.workspace import Options, TrainingResult, Workspace, open
    from toolkit.architectures import NetworkSettings
    from toolkit.bench.schema import Report
    from toolkit.data.arrays import from_arrays
    from toolkit.distill.metrics import EpochMetrics
    from toolkit.errors import (
        ArtifactError,
        DataError,
        DeviceError,
        GateError,
        Interrupted,
        RecipeError,
        ToolkitError,
        TrainingError,
        UsageError,
        WeightsError,
    )
    from toolkit.export.export import ExportResult
    from toolkit.machine.devices import keep_freed_memory
    from toolkit.networks.registry import register as register_network
    from toolkit.predict import Prediction
    from toolkit.recipe import Recipe

__all__ = [
    "ArtifactError",
    "DataError",
    "DeviceError",
    "EpochMetrics",
    "ExportResult",
    "GateError",
    "Interrupted",
    "Model",
    "NetworkSettings",
    "Options",
    "Prediction",
    "Recipe",
    "RecipeError",
    "Report",
    "ToolkitError",
    "TrainingError",
    "TrainingResult",
    "UsageError",
    "WeightsError",
    "Workspace",
    "from_arrays",
    "keep_freed_memory",
    "load",
    "open",
    "register_network",
]

__version__ = "0.1.0"

# From 1.29 on onnxruntime on Linux reports opened models to its maker, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MODULE_OF = {
    "EpochMetrics": "distill.metrics",
    "ExportResult": "export.export",
    "NetworkSettings": "architectures",
    "Prediction": "predict",
    "Report": "bench.schema",
    "Recipe": "recipe",
    "from_arrays": "data.arrays",
    "keep_freed_memory": "machine.devices",
    "register_network": "networks.registry:register",
    **dict.fromkeys(("Model", "load"), "api.model"),
    **dict.fromkeys(("Options", "TrainingResult", "Workspace", "open"), "api.workspace"),
}
"""Public name → its module, imported when the name is first used; the others are errors. `:` another name there."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, own_name = _MODULE_OF.get(name, "errors").partition(":")
    return getattr(import_module(f"{__name__}.{module}"), own_name or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
