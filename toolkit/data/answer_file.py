"""Answers of a teacher in a file, .npz or .parquet: what somebody else computed, for images known by name or content.

N images, C classes. A file has a column `name` or `sha256` (hex, of the image file's bytes), a column `logits` or
`probabilities`, C numbers each, and, if it says so, the names of its `classes`: an array of an .npz file, or the metadata
of a .parquet file as a JSON list.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toolkit.errors import WeightsError, one_line
from toolkit.files import write_atomically

SUFFIXES = (".npz", ".parquet")
LARGEST_BYTES = 2**33
"""bytes of an .npz file, unpacked; a file of a few kB can pack any number of zeros"""
LEAST_PROBABILITY = 1e-10
SUM_TOLERANCE = 1e-2

Key = Literal["name", "sha256"]


@dataclass(frozen=True)
class AnswerFile:
    """`keys` of N images, of the kind `by`; `logits`, float32 (N, C); `classes`, None if the file names none."""

    by: Key
    keys: tuple[str, ...]
    logits: np.ndarray
    classes: tuple[str, ...] | None


def is_answer_file(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def read_answers(path: Path) -> AnswerFile:
    """Raises WeightsError if the file cannot be read, lacks a column, or holds values that are not finite."""
    columns = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_npz(path)
    by: Key = "name" if "name" in columns else "sha256"
    what = "logits" if "logits" in columns else "probabilities"
    if by not in columns or what not in columns:
        raise WeightsError(
            f"{path} has the columns {', '.join(sorted(columns)) or 'none'}",
            "it needs name or sha256 (text), and logits or probabilities (numbers, one for each class)",
        )
    keys, answers = columns[by], columns[what]
    if keys.ndim != 1 or answers.ndim != 2 or len(keys) != len(answers) or answers.dtype.kind not in "fiu":
        raise WeightsError(
            f"{path}: {by} is {keys.shape}, {what} {answers.shape} of {answers.dtype}",
            "it needs one text and one row of numbers for each image",
        )
    answers = answers.astype(np.float32)
    names = tuple(map(str, keys.tolist()))
    if not np.isfinite(answers).all():
        raise WeightsError(
            f"{path}: the answer for {names[int((~np.isfinite(answers)).any(1).argmax())]} is not finite",
            "compute it again",
        )
    if what == "probabilities":
        answers = _to_logits(path, names, answers)
    if len(set(names)) < len(names):
        twice = next(name for name, before in zip(sorted(names)[1:], sorted(names), strict=False) if name == before)
        raise WeightsError(f"{path} has two answers for {twice}", "keep one")
    classes = columns.get("classes")
    return AnswerFile(by, names, answers, None if classes is None else tuple(map(str, classes.tolist())))


def write_answers(
    path: Path, names: Sequence[str], sha256: Sequence[str] | None, logits: np.ndarray, classes: Sequence[str]
) -> None:
    """A file that `read_answers` reads; `sha256` beside the names if the images are files. Raises WeightsError."""
    columns: dict[str, Any] = {"name": list(names), **({"sha256": list(sha256)} if sha256 else {})}
    with write_atomically(path) as temporary:
        if path.suffix.lower() == ".parquet":
            pyarrow = _pyarrow(path)
            from pyarrow import parquet

            columns["logits"] = list(logits)
            table = pyarrow.table(columns)
            table = table.replace_schema_metadata({"classes": json.dumps(list(classes), ensure_ascii=False)})
            parquet.write_table(table, temporary)
            return
        arrays = {key: np.array(values, dtype=np.str_) for key, values in columns.items()}
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays, logits=logits, classes=np.array(classes, dtype=np.str_))


def _to_logits(path: Path, names: Sequence[str], probabilities: np.ndarray) -> np.ndarray:
    wrong = (probabilities < 0).any(1) | (np.abs(probabilities.sum(1) - 1) > SUM_TOLERANCE)
    if wrong.any():
        raise WeightsError(
            f"{path}: the probabilities of {names[int(wrong.argmax())]} are below 0, or do not sum to 1",
            "give probabilities, or name the column logits",
        )
    logits: np.ndarray = np.log(np.maximum(probabilities, LEAST_PROBABILITY))
    return logits


def _read_npz(path: Path) -> Mapping[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(member.file_size for member in archive.infolist())
        if size_bytes > LARGEST_BYTES:
            raise WeightsError(f"{path} unpacks to {size_bytes / 1e9:.0f} GB", "give a .parquet file")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if name in _WANTED}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise WeightsError(f"cannot read {path}: {reason}", "give what numpy.savez wrote, without objects") from None


def _read_parquet(path: Path) -> Mapping[str, np.ndarray]:
    _pyarrow(path)
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path)
        columns: dict[str, np.ndarray] = {}
        for name in _WANTED & {*table.column_names}:
            values = table.column(name).to_pylist()
            columns[name] = np.array(values, dtype=np.str_ if name in ("name", "sha256") else np.float32)
        words = (table.schema.metadata or {}).get(b"classes")
        if words is not None:
            columns["classes"] = np.array(json.loads(words), dtype=np.str_)
    except (OSError, ValueError, TypeError, ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise WeightsError(f"cannot read {path}: {reason}", "give a Parquet file, or an .npz file") from None
    return columns


_WANTED = {"name", "sha256", "logits", "probabilities", "classes"}


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise WeightsError(
            f"{path} needs the package pyarrow, which is not installed",
            "pip install 'kd-toolkit[parquet]', or give an .npz file",
        ) from None
    return pyarrow
