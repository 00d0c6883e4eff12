"""From weights to proven ONNX files."""
