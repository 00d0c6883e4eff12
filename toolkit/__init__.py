"""kd-toolkit: distil an image classifier into a small one, export it to ONNX with proof, benchmark it, show it."""

import os

__version__ = "0.1.0"

# From 1.29 on onnxruntime on Linux sends its maker what models it opens, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
