"""scripts/fetch_fashion_mnist.py, what `make data` runs; its real sources are tried by hand, not here."""

import gzip
import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

CONTENTS = {
    name: f"contents of {name}".encode() for name in ("train-images", "train-labels", "t10k-images", "t10k-labels")
}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with four small files for the real ones, an empty cache and no copy of the system's."""
    path = Path(__file__).parents[1] / "scripts" / "fetch_fashion_mnist.py"
    spec = importlib.util.spec_from_file_location("fetch_fashion_mnist", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SHA256", {k: hashlib.sha256(v).hexdigest() for k, v in CONTENTS.items()})
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FASHION_MNIST_SYSTEM", str(tmp_path / "system"))
    monkeypatch.setattr(module, "fetch_with_torchvision", failing("no network"))
    monkeypatch.setattr(module, "fetch_with_apt", failing("no apt"))
    return module


def failing(message: str) -> Callable[[Path], Path]:
    def fetch(_: Path) -> Path:
        raise RuntimeError(message)

    return fetch


def giving(contents: dict[str, bytes]) -> Callable[[Path], Path]:
    def fetch(folder: Path) -> Path:
        return pack(folder, contents)

    return fetch


def pack(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(gzip.compress(content))
    return folder


def unpacked(folder: Path) -> dict[str, bytes]:
    return {path.name: gzip.decompress(path.read_bytes()) for path in folder.iterdir()}


@pytest.mark.parametrize("place", ["cache/fashion-mnist", "cache/fashion-mnist/FashionMNIST/raw", "system"])
def test_existing_files_are_not_fetched(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    pack(tmp_path / place, CONTENTS)
    assert script.main() == 0
    assert capsys.readouterr().err == f"Fashion-MNIST is in {tmp_path / place}\n"


def test_torchvision_comes_before_apt(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.fetch_with_torchvision = giving(CONTENTS)
    assert script.main() == 0
    assert unpacked(tmp_path / "cache" / "fashion-mnist") == CONTENTS
    assert capsys.readouterr().err.endswith("from torchvision's download\n")


def test_apt_comes_next_and_a_broken_cache_is_mended(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = pack(tmp_path / "cache" / "fashion-mnist", CONTENTS)
    (cache / "train-images").write_bytes((cache / "train-images").read_bytes()[:-9])
    script.fetch_with_torchvision = giving(dict.fromkeys(CONTENTS, b"an error page"))
    script.fetch_with_apt = giving(CONTENTS)
    assert script.main() == 0
    assert unpacked(cache) == CONTENTS
    assert capsys.readouterr().err.endswith("from the Debian package\n")


def test_one_line_says_what_to_do_if_nothing_works(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.fetch_with_apt = giving({**CONTENTS, "t10k-labels": b"something else"})
    assert script.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "torchvision's download: no network" in line
    assert "the Debian package: t10k-labels is not what it should be" in line
    assert f"into {tmp_path / 'cache' / 'fashion-mnist'}, or install dataset-fashion-mnist with apt" in line
    assert not (tmp_path / "cache").exists()
