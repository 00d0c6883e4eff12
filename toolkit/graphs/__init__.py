"""ONNX graphs: built, halved, quantized."""
