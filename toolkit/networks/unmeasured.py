"""Teachers that teach, and of which no file for a runtime can be made: there is nothing of them to measure."""

from pathlib import Path

from toolkit.architectures import ANSWERS, ENSEMBLE, ONNX
from toolkit.networks.of_onnx import OnnxNetwork
from toolkit.networks.onnx_file import describe_content
from toolkit.networks.weights import load_model, read_info


def why_unmeasured(weights: Path) -> str:
    """Why the network in a weights file cannot be exported, as a clause; "" if it can. Raises WeightsError."""
    architecture = read_info(weights).architecture
    if architecture == ANSWERS:
        return "its answers came from a file"
    if architecture in (ONNX, ENSEMBLE):
        modules = load_model(weights)[0].modules()
        described = [describe_content(module.content) for module in modules if isinstance(module, OnnxNetwork)]
        if counts := [one.batch for one in described if one.batch is not None]:
            return f"its ONNX file takes {counts[0]} image(s) at a time, no other number"
    return ""
