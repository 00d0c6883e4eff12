"""Runtimes that answer images: torch, onnxruntime, OpenVINO."""
