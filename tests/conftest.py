"""Fixtures that several test files share: small data that is made, not shipped."""

import atexit
import os
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Real photographs and the notebook's student, if they are beside the checkout."""


os.environ.setdefault("OMP_WAIT_POLICY", "passive")
"""Threads that wait do not spin, as other work may need the core. torch reads it when it is imported, here and in the
processes that tests start."""

DEVICES = ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)]
"""Devices for the body of a test for a GPU: the CPU proves the body."""


USERS_CACHE = Path(os.environ.get("KD_TOOLKIT_CACHE") or Path.home() / ".cache" / "kd-toolkit")
"""Read for the real Fashion-MNIST, and nothing else of it."""


def shared(*parts: str) -> Path:
    """A path in ../shared; the test is skipped if it is not there."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"../shared/{'/'.join(parts)} is not here")
    return path


def free_port() -> int:
    """A port of 127.0.0.1 that stays free: until this process ends the system gives it to no process that asks for any
    port. A process that asks for its number (with SO_REUSEADDR, as servers do) can listen there."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    atexit.register(holder.close)
    return int(holder.getsockname()[1])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu", action="store_true", help="tests marked gpu fail if torch sees no GPU, and are not skipped"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked gpu is skipped if there is none; with --require-gpu (make test-gpu) it fails."""
    if item.get_closest_marker("gpu") is None or item.get_closest_marker("container"):
        return
    import torch

    if torch.cuda.is_available():
        return
    if item.config.getoption("--require-gpu"):
        pytest.fail("torch sees no GPU, so this was not tried; toolkit doctor may know why", pytrace=False)
    pytest.skip("torch sees no GPU")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test fills the user's own cache, or reads decoded images or hashes from it.

    The same holds for torch.compile's: its kernels for another kind of CPU (ATEN_CPU_CAPABILITY) compute nonsense.
    """
    os.environ["KD_TOOLKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_counts() -> None:
    """A suite that a script runs in the background has Ctrl-C ignored, and its children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small work is faster, and repeatable to the bit, on one thread."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real Fashion-MNIST, if it is on this machine; else the test is skipped."""
    from toolkit.data import named
    from toolkit.data.idx import find_idx_files

    own = USERS_CACHE / "fashion-mnist"
    places = (own, own / "FashionMNIST" / "raw", named.FASHION_MNIST_SYSTEM_FOLDER)
    folder = next((place for place in places if find_idx_files(place)), None)
    if folder is None:
        pytest.skip("Fashion-MNIST is not on this machine: make data")
    monkeypatch.setattr(named, "FASHION_MNIST_SYSTEM_FOLDER", folder)


def make_image(label: int, seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A noisy picture whose dominant colour channel is its label (0, 1 or 2); size is (width, height) in px."""
    noise = np.random.default_rng(seed).integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    noise[..., label % 3] += 100
    return Image.fromarray(noise)


def make_png(width: int, height: int, rows: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """A PNG file of any header, written chunk by chunk; `rows` begin with their filter's byte. Colour type 2 is RGB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def make_class_folders(root: Path, images_per_class: tuple[int, int, int] = (12, 4, 4)) -> Path:
    """root/{train,val,test}/{blue,green,red}/*.png, easy to learn; returns root."""
    for split, count in zip(("train", "val", "test"), images_per_class, strict=True):
        for label, name in ((2, "blue"), (1, "green"), (0, "red")):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                seed = (len(split) + ord(split[1])) * 100_000 + label * 1000 + i
                make_image(label, seed).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of 3 classes × (12, 4, 4) PNG images of 48×40 px under train/val/test."""
    return make_class_folders(tmp_path_factory.mktemp("class_folders"))


@pytest.fixture
def toolkit_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """The command in this process, which has loaded torch already, as that takes seconds; it runs in tmp_path."""
    import torch

    from toolkit.cli import ending

    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["toolkit", *arguments])
        with pytest.raises(SystemExit) as stop:
            ending.main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, stop.value.code, said.out, said.err)  # type: ignore[arg-type]

    yield run
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)
