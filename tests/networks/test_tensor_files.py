"""Files with tensors: what is read of them, without running anything, and what is refused in one line."""

import argparse
import collections
import ctypes
import datetime
import decimal
import functools
import importlib
import os
import pickle
import runpy
import subprocess
import types
import uuid
import warnings
import webbrowser
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from conftest import shared
from safetensors.torch import save_file

from toolkit.errors import WeightsError
from toolkit.networks import tensor_files
from toolkit.networks.depthwise import DepthwiseStudent, infer_student
from toolkit.networks.tensor_files import read_tensors
from toolkit.networks.weights import load_into


@pytest.fixture
def student() -> DepthwiseStudent:
    torch.manual_seed(0)
    return DepthwiseStudent(3, base=2, width_mult=0.5)


@pytest.fixture
def saved(student: DepthwiseStudent, tmp_path: Path) -> Path:
    path = tmp_path / "student.safetensors"
    save_file(student.state_dict(), path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as info:
        read_tensors(path)
    message = str(info.value)
    assert str(path) in message
    assert "\n" not in message
    return message


class TestWhatIsRead:
    def test_the_notebooks_student(self) -> None:
        path = shared("data", "notebook", "student_custom_small.bin")
        weights = read_tensors(path)
        assert infer_student(weights) == (11, 16, 1.0)
        load_into(DepthwiseStudent(11), weights, path, 11)

    def test_what_is_there_at_all(self, tmp_path: Path) -> None:
        assert "there is no weights file" in refused(tmp_path / "nowhere.bin")
        assert "is a directory" in refused(tmp_path)
        (tmp_path / "empty.bin").touch()
        assert "empty (0 bytes)" in refused(tmp_path / "empty.bin")
        (tmp_path / "notes.txt").write_text("weights go here\n")
        assert "not a file of safetensors or of torch.save" in refused(tmp_path / "notes.txt")

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_tensors_are_named_by_their_place(self, tmp_path: Path, zipped: bool) -> None:
        one, two = torch.zeros(1), torch.ones(2)
        tail = {"state": {0: {"exp_avg": one}}, "param_groups": [{"lr": 0.1}]}
        content = {"net": {"module.a": one, "b": {"c": two}}, "epoch": 3, "parts": [{"d": two}, one], "optimizer": tail}
        torch.save(content, tmp_path / "nested.pth", _use_new_zipfile_serialization=zipped)
        found = read_tensors(tmp_path / "nested.pth")
        assert list(found) == ["net.module.a", "net.b.c", "parts.0.d", "parts.1"]
        assert torch.equal(found["net.b.c"], two)

    def test_what_is_there_twice_is_looked_into_once(self, tmp_path: Path) -> None:
        """Mappings of mappings of the same ones have more paths than any machine can walk."""
        content: dict[str, Any] = {"a": torch.zeros(1)}
        for _ in range(60):
            content = {"x": content, "y": content}
        torch.save({"deep": content, "b": torch.ones(1)}, tmp_path / "bomb.pth")
        assert list(read_tensors(tmp_path / "bomb.pth")) == ["b"], "no state dict lies that deep"
        itself: dict[str, Any] = {"a": torch.zeros(1)}
        itself["again"] = itself
        torch.save(itself, tmp_path / "itself.pth")
        assert list(read_tensors(tmp_path / "itself.pth")) == ["a"]

    def test_the_first_bytes_decide_and_not_the_name(self, student: DepthwiseStudent, tmp_path: Path) -> None:
        torch.save(student.state_dict(), tmp_path / "a.safetensors")
        save_file(student.state_dict(), tmp_path / "b.pth")
        for name in ("a.safetensors", "b.pth"):
            assert read_tensors(tmp_path / name).keys() == student.state_dict().keys()

    def test_no_permission(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def deny(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", deny)
        assert "Permission denied" in refused(saved)

    @pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
    @pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
    def test_truncated(self, student: DepthwiseStudent, saved: Path, tmp_path: Path, form: str, kept: float) -> None:
        path = saved
        if form != "safetensors":
            path = tmp_path / "weights.bin"
            torch.save(student.state_dict(), path, _use_new_zipfile_serialization=form == "zip")
        os.truncate(path, int(path.stat().st_size * kept))
        assert "truncated" in refused(path)

    @pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
    def test_damaged_bytes_are_never_a_traceback(self, saved: Path, tmp_path: Path, form: str) -> None:
        whole = saved
        if form != "safetensors":
            whole = tmp_path / "whole.bin"
            small = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
            torch.save(small, whole, _use_new_zipfile_serialization=form == "zip")
        content = whole.read_bytes()
        random = np.random.default_rng(0)
        path, refused = tmp_path / "damaged", 0
        for _ in range(150):
            damaged = bytearray(content)
            for place in random.integers(0, min(len(content), 1500), 3):
                damaged[place] = random.integers(256)
            path.write_bytes(damaged)
            try:
                read_tensors(path)
            except WeightsError:  # damage to numbers alone goes unnoticed
                refused += 1
        assert refused >= 50

    def test_code_is_never_run(self, tmp_path: Path) -> None:
        """In a bare pickle, in torch's zip, and in its legacy form; the refusal names what was asked for."""
        witness = tmp_path / "ran"

        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(witness),)

        (tmp_path / "pickle.bin").write_bytes(pickle.dumps({"a": Trap()}))
        (tmp_path / "protocol2.bin").write_bytes(pickle.dumps({"a": Trap()}, protocol=2))
        torch.save({"a": Trap()}, tmp_path / "zip.bin")
        torch.save({"a": Trap()}, tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
        for name in ("pickle", "protocol2", "zip", "legacy"):
            message = refused(tmp_path / f"{name}.bin")
            assert ("a pickle that torch.save did not write" if name == "pickle" else "mkdir") in message
            assert "refused unread: a pickle can run code" in message
            assert not witness.exists()
        pickle.loads((tmp_path / "pickle.bin").read_bytes())
        assert witness.is_dir()  # the trap does spring where it is read carelessly

    def test_whole_networks_are_refused(self, student: DepthwiseStudent, tmp_path: Path) -> None:
        torch.save(student, tmp_path / "network.pt")
        message = refused(tmp_path / "network.pt")
        assert "DepthwiseStudent" in message
        assert "torch.save(network.state_dict(), path)" in message

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (torch.zeros(2), "a Tensor, not a state dict"),
            ([1, 2], "a list, not a state dict"),
            ({}, "an empty state dict"),
            ({"state_dict": {}}, "an empty state dict"),
            ({"epoch": 3}, "'epoch' is a int"),
            ({1: torch.zeros(1)}, "1 is a Tensor"),
            ({"a": np.zeros(2, np.float32)}, "'a' is a numpy array, and torch.from_numpy makes it a tensor"),
            (np.zeros((2, 3)), "a numpy array, and torch.from_numpy makes it a tensor"),
            ({"args": argparse.Namespace(a=1)}, "'args' is a argparse.Namespace"),
            ({"a": torch.ones(2).to_sparse()}, "'a' is a sparse tensor"),
        ],
    )
    def test_no_state_dict(self, tmp_path: Path, content: object, told: str) -> None:
        torch.save(content, tmp_path / "odd.pt")
        assert told in refused(tmp_path / "odd.pt")

    def test_a_pickle_that_torch_did_not_write(self, tmp_path: Path) -> None:
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": 1}))
        refused(tmp_path / "a.pkl")


class Settings:
    """As scripts have one of their own."""

    def __init__(self) -> None:
        self.lr = 0.1


class Frozen(dict[str, Any]):
    """As yacs, easydict and Lightning have one."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.__dict__ = self


HARMLESS = {
    "Namespace": argparse.Namespace(lr=0.1, out=Path("runs/1")),
    "SimpleNamespace": types.SimpleNamespace(lr=0.1),
    "numbers of numpy": {"best": np.float64(0.9), "epoch": np.int64(3), "flag": np.bool_(True), "half": np.float16(1)},
    "arrays of numpy": {"mean": np.zeros(3), "names": np.array(["a", "b"]), "confusion": np.ones((2, 2), np.int32)},
    "paths": [Path("a"), PureWindowsPath("b")],
    "times": [datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.timedelta(1), datetime.date(2026, 1, 2)],
    "defaultdict": collections.defaultdict(list, a=[1]),
    "deque": collections.deque([1, 2], maxlen=3),
    "Counter": collections.Counter("abc"),
    "OrderedDict": collections.OrderedDict(a=1),
    "of torch": [torch.Size([1]), torch.float16, torch.device("cpu"), torch.__version__],
    "of Python": [None, True, 1.5, "text", b"bytes", {1, 2}, (1,), 2**70, 1j, decimal.Decimal(1), uuid.UUID(int=1)],
    "own class": Settings(),
    "own mapping": Frozen(lr=0.1, more=Frozen(a=1)),
    "class as a key": {Settings: {"best": 1}},
}
"""What scripts save beside the weights."""


class TestBesideTheTensors:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize("what", list(HARMLESS))
    def test_harmless_objects_are_passed_over(self, tmp_path: Path, what: str, zipped: bool) -> None:
        content = {"args": HARMLESS[what], "model": {"a": torch.ones(2)}, "after": HARMLESS[what]}
        torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
        found = read_tensors(tmp_path / "c.pth")
        assert torch.equal(found["model.a"], torch.ones(2))
        assert len(found) == 1

    def test_nothing_of_their_classes_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.save({"s": Settings(), "f": Frozen(lr=1), "a": torch.zeros(1)}, tmp_path / "c.pth")

        def run(*_: object, **__: object) -> None:
            raise AssertionError("something was run")

        for kind in (Settings, Frozen):
            monkeypatch.setattr(kind, "__init__", run)
            monkeypatch.setattr(kind, "__new__", run)
            monkeypatch.setattr(kind, "__setstate__", run, raising=False)
            monkeypatch.setattr(kind, "__setattr__", run)
        assert list(read_tensors(tmp_path / "c.pth")) == ["a"]

    def test_no_class_stays_allowed(self, tmp_path: Path) -> None:
        torch.save({"s": Settings(), "a": torch.zeros(1)}, tmp_path / "c.pth")
        before = set(torch.serialization.get_safe_globals())
        read_tensors(tmp_path / "c.pth")
        assert set(torch.serialization.get_safe_globals()) == before
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "c.pth", weights_only=True)

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize(
        "function",
        [
            *(eval, getattr, os.system, subprocess.Popen, importlib.import_module, pickle.loads, ctypes.CDLL),
            *(runpy.run_path, functools.partial, webbrowser.open, torch.load, torch.hub.load, torch.jit.load),
            *(np.load, torch.optim.SGD),
        ],
    )
    def test_what_could_run_code_is_refused(self, tmp_path: Path, function: Any, zipped: bool) -> None:
        class Call:
            def __reduce__(self) -> tuple[Any, ...]:
                return function, ("1",)

        for content in (Call(), {"a": torch.zeros(1), "args": Call()}):
            torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
            message = refused(tmp_path / "c.pth")
            assert function.__qualname__ in message
            assert "refused unread: a pickle can run code" in message

    def test_too_many_kinds_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tensor_files, "MOST_KINDS", 1)
        torch.save([argparse.Namespace(), Path("a"), {"a": torch.zeros(1)}], tmp_path / "c.pth")
        assert "it asks for argparse.Namespace, pathlib.PosixPath" in refused(tmp_path / "c.pth")

    def test_a_whole_network_among_others_is_refused_with_the_way_out(
        self, student: DepthwiseStudent, tmp_path: Path
    ) -> None:
        torch.save({"model": student, "args": argparse.Namespace()}, tmp_path / "c.pt")
        message = refused(tmp_path / "c.pt")
        assert "a whole network (it asks for toolkit.networks.depthwise.DepthwiseStudent, torch.nn.modules" in message
        assert "save tensors only, torch.save(network.state_dict(), path)" in message

    def test_torchscript_says_what_it_is(self, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
        assert "is a TorchScript program, not weights; save tensors only" in refused(tmp_path / "program.pt")
