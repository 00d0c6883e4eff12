"""Answers of a teacher in a file, .npz or .parquet: what somebody else computed, for images known by name or content.

N images, C classes. A file has a column `name` or `sha256` (hex, of the image file's bytes) or both, a column `logits`
or `probabilities`, C numbers each, and, if it says so, the names of its `classes`: an array of an .npz file, or the
metadata of a .parquet file as a JSON list.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import UsageError, WeightsError, one_line
from toolkit.files import write_atomically
from toolkit.names import ANSWER_SUFFIXES

LARGEST_BYTES = 2**33
"""bytes of a file, unpacked; a file of a few kB can pack any number of zeros"""
LEAST_PROBABILITY = 1e-10
"""what a probability of 0 becomes before its logarithm"""
SUM_TOLERANCE = 1e-2
"""by how much the sum of an image's probabilities may differ from 1: people round them"""

KEYS = ("name", "sha256")
ANSWERS = ("logits", "probabilities")
CLASSES = "classes"

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class AnswerFile:
    """Logits, float32 (N, C), of N images that are known by `names`, by `sha256` (hex), or by both.

    `classes` are the names of the C columns, None if the file does not name them.
    """

    path: Path
    names: tuple[str, ...] | None
    sha256: tuple[str, ...] | None
    logits: np.ndarray
    classes: tuple[str, ...] | None

    @property
    def keys(self) -> tuple[str, ...]:
        """The names; the SHA-256s if it has no names."""
        return self.names or self.sha256 or ()


def is_answer_file(path: Path) -> bool:
    return path.suffix.lower() in ANSWER_SUFFIXES


def require_answer_file(path: Path, option: str) -> None:
    """UsageError unless a file of that name is one of answers; WeightsError if its kind needs a missing package."""
    if not is_answer_file(path):
        raise UsageError(f"{option} {path} is not one of {', '.join(ANSWER_SUFFIXES)}", "choose one of these endings")
    if path.suffix.lower() == ".parquet":
        _pyarrow(path)


def read_answers(path: Path) -> AnswerFile:
    """Raises WeightsError if the file cannot be read, lacks a column, or holds values that are not finite."""
    columns = _read_columns(path)
    keys = [key for key in KEYS if key in columns]
    what = next((name for name in ANSWERS if name in columns), None)
    if not keys or what is None:
        raise WeightsError(
            f"{path} has the columns {', '.join(sorted(columns)) or 'none that count'}",
            "it needs name or sha256 (text), and logits or probabilities (numbers, one for each class)",
        )
    for key in keys:
        _require_rows(path, columns, key, what)
    with np.errstate(over="ignore"):
        answers = columns[what].astype(np.float32)
    names = _read_names(path, columns["name"]) if "name" in keys else None
    sha256 = tuple(word.lower() for word in _texts(columns["sha256"])) if "sha256" in keys else None
    shown = names or sha256 or ()
    if not np.isfinite(answers).all():
        name = shown[int((~np.isfinite(answers)).any(1).argmax())]
        raise WeightsError(f"{path}: the answer for {name} is not finite", "compute it again")
    if what == "probabilities":
        answers = _to_logits(path, shown, answers)
    classes = _texts(columns[CLASSES]) if CLASSES in columns else None
    return AnswerFile(path, names, sha256, answers, classes)


def read_classes(path: Path) -> tuple[str, ...] | None:
    """The names of its classes alone; None if it has none. Raises WeightsError if the file cannot be read."""
    columns = _read_columns(path, (CLASSES,))
    return _texts(columns[CLASSES]) if CLASSES in columns else None


def write_answers(
    path: Path, keys: Mapping[str, Sequence[str]], logits: np.ndarray, classes: Sequence[str] | None
) -> None:
    """A file that `read_answers` reads, whole or not at all; `keys` are `name`, `sha256` or both, (N,) each.

    Raises WeightsError if the package for it is missing, ArtifactError if it cannot be written.
    """
    logits = np.ascontiguousarray(logits, dtype=np.float32)
    with write_atomically(path) as temporary:
        if path.suffix.lower() == ".parquet":
            _write_parquet(temporary, keys, logits, classes)
            return
        arrays: dict[str, Any] = {key: np.array(values, dtype=np.str_) for key, values in keys.items()}
        if classes is not None:
            arrays[CLASSES] = np.array(classes, dtype=np.str_)
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays, logits=logits)


def _write_parquet(
    path: Path, keys: Mapping[str, Sequence[str]], logits: np.ndarray, classes: Sequence[str] | None
) -> None:
    pyarrow = _pyarrow(path)
    from pyarrow import parquet

    rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(logits.ravel()), logits.shape[1])
    table = pyarrow.table({**{key: list(values) for key, values in keys.items()}, "logits": rows})
    if classes is not None:
        table = table.replace_schema_metadata({CLASSES: json.dumps(list(classes), ensure_ascii=False)})
    parquet.write_table(table, path)


def _require_rows(path: Path, columns: Columns, key: str, what: str) -> None:
    keys, answers = columns[key], columns[what]
    fits = keys.ndim == 1 and answers.ndim == 2 and len(keys) == len(answers) > 0 and answers.shape[1] > 1
    if not fits or keys.dtype.kind not in "US" or answers.dtype.kind not in "fiu":
        raise WeightsError(
            f"{path}: {key} is {keys.dtype} {keys.shape}, {what} is {answers.dtype} {answers.shape}",
            "it needs one text and one row of numbers for each image",
        )


def _read_names(path: Path, column: np.ndarray) -> tuple[str, ...]:
    """With / between folders, as data sets name images. WeightsError if one is there twice."""
    names = tuple(name.replace("\\", "/").removeprefix("./") for name in _texts(column))
    if len(set(names)) < len(names):
        ordered = sorted(names)
        twice = next(name for name, before in zip(ordered[1:], ordered, strict=False) if name == before)
        raise WeightsError(f"{path} has two answers for {twice}", "keep one")
    return names


def _texts(column: np.ndarray) -> tuple[str, ...]:
    if column.dtype.kind == "S":
        column = np.char.decode(column, "utf-8", "replace")
    return tuple(map(str, column.ravel().tolist()))


def _to_logits(path: Path, names: Sequence[str], probabilities: np.ndarray) -> np.ndarray:
    wrong = (probabilities < 0).any(1) | (np.abs(probabilities.sum(1) - 1) > SUM_TOLERANCE)
    if wrong.any():
        raise WeightsError(
            f"{path}: the probabilities of {names[int(wrong.argmax())]} are below 0, or do not sum to 1",
            "give probabilities, or name the column logits",
        )
    logits: np.ndarray = np.log(np.maximum(probabilities, LEAST_PROBABILITY))
    return logits


def _read_columns(path: Path, wanted: Sequence[str] = (*KEYS, *ANSWERS, CLASSES)) -> Columns:
    return _read_parquet(path, wanted) if path.suffix.lower() == ".parquet" else _read_npz(path, wanted)


def _read_npz(path: Path, wanted: Sequence[str]) -> Columns:
    try:
        with zipfile.ZipFile(path) as archive:
            _require_small(path, sum(member.file_size for member in archive.infolist()))
        with np.load(path, allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in arrays.files if name in wanted}
        if wrong := [name for name, column in columns.items() if not isinstance(column, np.ndarray)]:
            raise ValueError(f"{wrong[0]} is no array")
        return columns
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, NotImplementedError) as error:
        raise _unreadable(path, error, "give what numpy.savez wrote, without objects") from None


def _read_parquet(path: Path, wanted: Sequence[str]) -> Columns:
    _pyarrow(path)
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(path)
        groups = [file.metadata.row_group(place) for place in range(file.metadata.num_row_groups)]
        values = sum(group.column(place).num_values for group in groups for place in range(group.num_columns))
        _require_small(path, max(8 * values, sum(group.total_byte_size for group in groups)))
        names = [name for name in file.schema_arrow.names if name in wanted]
        table = file.read(columns=names)
        columns = {name: _to_array(table.column(name), name) for name in names if name != CLASSES}
        if (words := (table.schema.metadata or {}).get(CLASSES.encode())) is not None and CLASSES in wanted:
            columns[CLASSES] = np.array(json.loads(words), dtype=np.str_)
    except (OSError, ValueError, TypeError, ArrowException) as error:
        raise _unreadable(path, error, "give a Parquet file, or an .npz file") from None
    return columns


def _to_array(column: Any, name: str) -> np.ndarray:
    """A column of texts, (N,), or of lists of numbers that are all as long, (N, C). Raises ValueError for others."""
    from pyarrow import compute, types

    if column.null_count:
        raise ValueError(f"{name} is empty in {column.null_count} rows")
    if name in KEYS:
        return np.array(column.to_pylist())
    if not hasattr(column.type, "value_type") or types.is_dictionary(column.type):
        raise ValueError(f"{name} holds {column.type}, not lists of numbers")
    lengths = compute.unique(compute.list_value_length(column)).to_pylist()
    if len(lengths) > 1:
        raise ValueError(f"{name} holds lists of {min(lengths)} and of {max(lengths)} numbers")
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(parts).reshape(len(column), -1) if len(column) else np.empty((0, 0))


def _require_small(path: Path, size_bytes: int) -> None:
    if size_bytes > LARGEST_BYTES:
        raise WeightsError(
            f"{path} unpacks to {size_bytes / 2**30:,.1f} GiB, at most {LARGEST_BYTES / 2**30:,.1f} are read",
            "store the answers in float32, and for the images of this data alone",
        )


def _unreadable(path: Path, error: BaseException, remedy: str) -> WeightsError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return WeightsError(f"cannot read {path}: {reason}", remedy)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise WeightsError(
            f"{path} needs the package pyarrow, which is not installed",
            "pip install 'kd-toolkit[parquet]', or give an .npz file",
        ) from None
    return pyarrow
