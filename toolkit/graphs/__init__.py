"""ONNX graphs: built, halved, rounded, quantized."""
