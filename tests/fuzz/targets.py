"""Five readers of files that strangers make. Each takes any bytes: it answers, or refuses in one line.

`TARGETS[name].run(data)` raises only if the reader has a fault. test_fuzz.py feeds it from hypothesis for seconds,
run.py from atheris for as long as you like. The first byte of `data` chooses how the rest becomes a file: as it is, or
put into a valid file at the place where it does most harm, so that checksums and lengths do not keep every change out.
"""

import argparse
import copy
import io
import json
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, TiffImagePlugin  # noqa: F401 - a plugin that is loaded later would count as new code each time
from report_samples import make_report
from safetensors.torch import save as save_safetensors
from torch import nn

from toolkit.bench.report.side_by_side import compare_reports, print_side_by_side
from toolkit.bench.report.table import print_table, render_markdown
from toolkit.bench.schema import read_report
from toolkit.data.preprocess import Preprocess
from toolkit.distill.checkpoint import Checkpoint
from toolkit.errors import ToolkitError
from toolkit.networks.tensor_files import read_tensors
from toolkit.networks.weights import carries_info, load_into, load_model
from toolkit.predict import read_pixels
from toolkit.recipe import Recipe
from toolkit.runtimes.base import read_metadata

LONGEST_MESSAGE = 1000
"""characters; a message that repeats a whole file is no message"""

Form = Callable[[bytes], bytes]
"""From what the fuzzer made to the content of a file."""


@dataclass(frozen=True)
class Target:
    """A reader, the forms that its input takes, and small valid files to begin with."""

    read: Callable[[Path], object]
    forms: tuple[Form, ...]
    seeds: Callable[[], list[bytes]]
    """What `run` takes: the number of a form, then its bytes."""
    name: str = "file"

    def run(self, data: bytes) -> bool:
        """Whether the reader took the file; AssertionError or another exception if it has a fault."""
        form = self.forms[data[0] % len(self.forms) if data else 0]
        path = _folder() / self.name
        path.write_bytes(form(data[1:]))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on damaged EXIF
                self.read(path)
        except ToolkitError as error:
            check_message(str(error))
            return False
        return True


def check_message(message: str) -> None:
    """One line, not too long, that any terminal can print."""
    assert message.strip(), "an empty message"
    assert len(message.splitlines()) == 1, f"a message of several lines: {message!r}"
    assert len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters: {message[:200]!r}…"


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="kd-toolkit-fuzz-"))


# Pictures ------------------------------------------------------------------------------------------------------------


def _read_picture(path: Path) -> None:
    pixels = read_pixels(path, Preprocess(32, 36, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8


def _png_of(chunk: bytes) -> bytes:
    """A PNG whose header and pixels are `chunk`, with right checksums."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head, rest = chunk[:13].ljust(13, b"\0"), chunk[13:]
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rest)) + part(b"IEND", b"")


def _picture_seeds() -> list[bytes]:
    colours = np.arange(9 * 7 * 3, dtype=np.uint8).reshape(9, 7, 3)
    seeds = []
    for mode, kind, options in (
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("CMYK", "JPEG", {}),
        ("L", "PNG", {}),
        ("P", "PNG", {"transparency": 0}),
        ("RGBA", "WEBP", {}),
        ("RGB", "BMP", {}),
        ("P", "GIF", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("I;16", "TIFF", {}),
        ("RGB", "PPM", {}),
    ):
        stream = io.BytesIO()
        image = Image.fromarray(colours)
        image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
        image.save(stream, kind, **options)
        seeds.append(b"\0" + stream.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(colours).save(stream, "JPEG", exif=exif)
    seeds.append(b"\0" + stream.getvalue())
    seeds.append(b"\1" + struct.pack(">IIBBBBB", 7, 9, 8, 2, 0, 0, 0) + b"\0" * 9 * 22)
    return seeds


# Weights and checkpoints ---------------------------------------------------------------------------------------------


def _read_weights(path: Path) -> None:
    tensors = read_tensors(path)
    assert tensors
    assert all(isinstance(key, str) for key in tensors)
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    load_into(nn.ModuleDict({"conv": nn.Linear(8, 2, bias=False)}), tensors, path, 2)
    if carries_info(path):
        load_model(path)


def _read_checkpoint(path: Path) -> None:
    Checkpoint(path, {"stage": "student"}).open(resume=True, force=False)


def _zip_of(pickled: bytes) -> bytes:
    """A file of torch.save whose pickle is `pickled`; it has one storage of 64 bytes, `0`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in (
            ("data.pkl", pickled),
            ("byteorder", b"little"),
            ("data/0", bytes(64)),
            ("version", b"3\n"),
        ):
            archive.writestr(f"archive/{name}", content)
    return stream.getvalue()


def _safetensors_of(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(64)


def _pickle_in(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    with zipfile.ZipFile(io.BytesIO(stream.getvalue())) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        return archive.read(name)


def _weight_seeds() -> list[bytes]:
    state = {"conv.weight": torch.zeros(2, 8)}  # 64 bytes: what the other forms put behind their headers
    whole, old = io.BytesIO(), io.BytesIO()
    torch.save(state, whole)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    tensors = save_safetensors(state, {"kd_toolkit": json.dumps({"architecture": "depthwise", "classes": ["a", "b"]})})
    length = struct.unpack("<Q", tensors[:8])[0]
    wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}
    beside = {"ema": state, "net": state, "args": argparse.Namespace(out=Path("a")), "best": np.float64(0.5)}
    return [
        b"\0" + whole.getvalue(),
        b"\0" + old.getvalue(),
        b"\0" + tensors,
        b"\1" + _pickle_in(state),
        b"\1" + _pickle_in(wrapped),
        b"\1" + _pickle_in(beside),
        b"\2" + tensors[8 : 8 + length],
        b"\2" + save_safetensors(state)[8:-64],
    ]


def _checkpoint_seeds() -> list[bytes]:
    progress = {"epoch": 1, "step": 2, "loss_sum": 0.5, "hits": 1, "epoch_s": 1.0, "seconds": 1.0, "training_s": 1.0}
    values: dict[str, Any] = {
        **{key: {} for key in ("learner", "optimizer", "scheduler", "best_state")},
        **dict.fromkeys(("average", "part_size", "best", "gpu_rng")),
        "settings": {"stage": "student"},
        "progress": progress | {"images_seen": 3},
        "first_rate": 0.1,
        "epoch": 1,
        "history": [],
        "rng": torch.zeros(64, dtype=torch.uint8),
        "precision": "fp32",
        "teacher_precision": "fp32",
    }
    return [
        b"\0" + _zip_of(_pickle_in(values)),
        b"\1" + _pickle_in(values),
        b"\1" + _pickle_in(values | {"settings": {"stage": "teacher"}}),
    ]


# Recipes, metadata and reports ---------------------------------------------------------------------------------------


def change_json(value: Any, script: bytes) -> Any:
    """`value` with parts replaced or taken out: each two bytes of `script` choose a part, and what takes its place."""
    value = json.loads(json.dumps(value))
    for where, what in zip(script[::2], script[1::2], strict=False):
        places = [(holder, key) for holder, key in _parts_of(value)]
        if not places:
            break
        holder, key = places[(where * 257 + what) % len(places)]
        if what % 16 == 0:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(_ODD[what % len(_ODD)])
    return value


_ODD: list[Any] = [
    *(None, True, 0, -1, 1, 1e308, -1e308, 5e-324, 2**63, 10**400, 0.5, float("nan"), float("inf")),
    *("", "a", "\n", "\0", "é\u202e", "\ud800", "[bold]", "|", "x" * 3000, "1e999", "depthwise", "student"),
    *([], [1], {}, {"a": 1}, [[]], [None], {"": {}}),
]


def _parts_of(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [part for key in keys for part in [(value, key), *_parts_of(value[key])]]


def _report_of(script: bytes) -> bytes:
    return json.dumps(change_json(make_report().to_json(), script)).encode()


def _read_report(path: Path) -> None:
    report = read_report(path)
    print_table(report)
    assert render_markdown(report)
    print_side_by_side(compare_reports(report, make_report(), ("one", "two")))


def _read_recipe(path: Path) -> None:
    """TOML; or the values of one as JSON, if the file begins with a brace."""
    content = path.read_bytes()
    recipe = Recipe.from_dict(json.loads(content), str(path)) if content[:1] == b"{" else Recipe.from_toml(path)
    assert Recipe.from_dict(recipe.model_dump(mode="json"), "itself") == recipe


def _recipe_of(script: bytes) -> bytes:
    return json.dumps(change_json(Recipe().model_dump(mode="json"), script)).encode()


def _as_toml(text: bytes) -> bytes:
    return text.lstrip(b"{ \t\r\n")


_GOOD_METADATA = {
    "classes": json.dumps(["cat", "dog"]),
    "preprocess": Preprocess(32, 36, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).to_json(),
}


def _read_metadata(path: Path) -> None:
    entries = json.loads(path.read_bytes())
    classes, preprocess = read_metadata(entries, path)
    assert all(isinstance(name, str) for name in classes)
    preprocess(Image.new("RGB", (40, 30)))


def _metadata_texts(data: bytes) -> bytes:
    """Two texts, apart at the first zero byte, as `classes` and `preprocess`."""
    classes, _, preprocess = data.decode("utf-8", "replace").partition("\0")
    return json.dumps({"classes": classes, "preprocess": preprocess or _GOOD_METADATA["preprocess"]}).encode()


def _metadata_of(script: bytes) -> bytes:
    values = {key: json.loads(text) for key, text in _GOOD_METADATA.items()}
    changed: Mapping[str, Any] = change_json(values, script)
    return json.dumps({key: json.dumps(value) for key, value in changed.items()}).encode()


def _scripts(*, form: bytes) -> list[bytes]:
    return [form + bytes((i, 7 * i % 256)) for i in range(0, 256, 17)]


TARGETS = {
    "picture": Target(_read_picture, (bytes, _png_of), _picture_seeds),
    "weights": Target(_read_weights, (bytes, _zip_of, _safetensors_of), _weight_seeds),
    "checkpoint": Target(_read_checkpoint, (bytes, _zip_of), _checkpoint_seeds),
    "recipe": Target(
        _read_recipe,
        (_as_toml, _recipe_of),
        lambda: [b"\0[data]\nimage_size = 32\n[distill]\nmethod = \"kd\"\n", *_scripts(form=b"\1")],
    ),
    "metadata": Target(
        _read_metadata,
        (_metadata_texts, _metadata_of),
        lambda: [b"\0" + "\0".join(_GOOD_METADATA.values()).encode(), *_scripts(form=b"\1")],
    ),
    "report": Target(
        _read_report,
        (bytes, _report_of),
        lambda: [b"\0" + json.dumps(make_report().to_json()).encode(), *_scripts(form=b"\1")],
    ),
}  # fmt: skip
