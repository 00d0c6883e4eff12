"""Sessions of onnxruntime: how one is opened, and the providers that truly run a model here."""
