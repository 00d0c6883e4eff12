"""Names that the recipe, the command line and what they name have in common. Imports nothing of the project."""

from typing import Literal, get_args

RuntimeName = Literal["torch", "torch.compile", "onnxruntime", "openvino"]
"""Runtimes that the benchmark may be asked for; toolkit/runtimes/opening.py has the table."""

RUNTIME_NAMES: tuple[RuntimeName, ...] = get_args(RuntimeName)

ANSWER_SUFFIXES = (".npz", ".parquet")
"""Endings of files of a teacher's answers."""

ONNX_SUFFIX = ".onnx"
