"""scripts/slim.py on libraries of the installed torch and of its own making."""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TORCH = Path(torch.__file__).parent / "lib"

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("ld") is None, reason="needs Linux and binutils"
)


@pytest.fixture(scope="module")
def slim() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slim", ROOT / "scripts" / "slim.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["slim"] = module  # dataclasses looks for it there
    spec.loader.exec_module(module)
    return module


def test_a_cut_library_is_smaller_and_works(slim: ModuleType, tmp_path: Path) -> None:
    library = tmp_path / "libc10.so"
    shutil.copy(TORCH / "libc10.so", library)
    before = library.stat().st_size
    slim.cut(library)
    assert library.stat().st_size < before
    code = f"import ctypes; ctypes.CDLL({str(library)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert slim.read_needed(library) == slim.read_needed(TORCH / "libc10.so")


def test_a_file_that_is_not_a_library_is_refused(slim: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(bytes(200))
    with pytest.raises(ValueError, match="is not a library of the expected form"):
        slim.cut(tmp_path / "lib.so")


def test_zeros_take_the_place_of_what_is_not_loaded(slim: ModuleType, tmp_path: Path) -> None:
    """A library with 1 MB between two words; afterwards the words are there and the megabyte reads as zeros."""
    source = tmp_path / "source.s"
    source.write_text(
        ".globl first, middle, last\n"
        ".section .rodata\nfirst: .quad 11\n"
        '.section .nv_fatbin, "a"\nmiddle: .fill 131072, 8, 22\n'
        '.section .zlast, "a"\nlast: .quad 33\n'
        '.section .note.x, "a", @note\n.long 2, 0, 1\n.asciz "x"\n.balign 4\n'
    )
    subprocess.run(["as", "-o", tmp_path / "object.o", source], check=True)
    library = tmp_path / "libwords.so"
    subprocess.run(["ld", "-shared", "-o", library, tmp_path / "object.o"], check=True)
    place = slim.read_section(library, ".nv_fatbin")
    assert place[1] - place[0] == 2**20
    slim.cut(library, place)
    assert library.stat().st_size < 2**17
    words = ctypes.CDLL(str(library))
    values = [ctypes.c_uint64.in_dll(words, name).value for name in ("first", "middle", "last")]
    assert values == [11, 0, 33]


def test_a_stand_in_says_which_function_was_called(slim: ModuleType, tmp_path: Path) -> None:
    library = tmp_path / "libnone.so.7"
    slim.write_library(library, {"noneCreate": "libnone.so.7", "noneDestroy": ""})
    code = f"import ctypes; ctypes.CDLL({str(library)!r}).noneDestroy()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode < 0
    assert done.stderr.startswith("noneDestroy: called for a GPU, and this image is the one without CUDA\n")
    assert "libnone.so.7" in slim.readelf("--dyn-syms", library)


def test_functions_that_torch_asks_of_nvidia_are_known(slim: ModuleType) -> None:
    if not (TORCH / "libtorch_cuda.so").exists():
        pytest.skip("this torch is without CUDA")
    asked = dict(slim.read_undefined(TORCH / "libtorch_cuda.so"))
    assert any(name.startswith("cublasLt") and version.startswith("libcublasLt.so.") for name, version in asked.items())
    assert slim.stem("libcublasLt.so.13") == "cublaslt"
    assert slim.stem("libnvshmem_host.so.3") == "nvshmem"


def test_every_path_that_is_deleted_has_a_reason_and_was_there(slim: ModuleType) -> None:
    packages = TORCH.parents[1]
    for pattern, reason in slim.UNUSED.items():
        assert reason
        assert next(packages.glob(pattern), None) is not None, f"nothing is at {pattern} any more"
