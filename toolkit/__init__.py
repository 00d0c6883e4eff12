"""kd-toolkit: distil an image classifier into a small one, export it to ONNX with proof, benchmark it, show it."""

__version__ = "0.1.0"
