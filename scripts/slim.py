"""Make installed packages smaller, for the image: `slim.py SITE_PACKAGES [--cpu]`. Linux on x86-64.

Always: the files of UNUSED are deleted, and torch's libraries keep what their program headers load. They lose the rest,
tables of symbols that only a debugger reads. (`strip` does the same to most files; those that patchelf rearranged, as
torch's are, it can break.)

--cpu: torch on PyPI is built for CUDA alone, and runs on the CPU wherever there is no GPU; yet it is linked to
gigabytes of NVIDIA's libraries. Here

- libtorch_cuda.so keeps its host code and loses its GPU code (section .nv_fatbin): zeros are mapped in its place;
- a library that is asked for and not installed gets a stand-in of a few kB with just the functions that torch asks of
  it. Nothing calls them without a GPU; one that is called says its name and ends the process.

Needs readelf, as and ld (Debian's binutils).
"""

import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

PAGE = 4096
LOAD, NOTE = 1, 4
HEADER_SIZE, PROGRAM_HEADER = 64, struct.Struct("<IIQQQQQQ")
UNUSED = {
    "triton": "torch.compile alone uses it, and not without a C compiler",
    "torch/include": "headers",
    "nvidia/*/include": "headers",
    "torch/share/cmake": "for programs that are linked to torch",
    "torch/bin/protoc*": "a compiler of protocol buffers",
    "nvidia/**/*.a": "static libraries",
    "nvidia/**/*.bc": "code that GPU compilers link to",
    "nvidia/*/lib/libcusolverMg.so.*": "no library is linked to it, and nothing opens it",
    "nvidia/*/lib/libcheckpoint.so": "CUDA's debugging interface: nothing is linked to it or opens it",
    "nvidia/*/lib/libpcsamplingutil.so": "the same",
    "nvidia/*/lib/libnvperf_*.so": "counters of GPU hardware, opened when a profiler asks libcupti for them",
    "*/**/tests": "the packages' own tests",
    "onnx/backend/test": "the same",
}
"""Paths from site-packages → why nothing of this toolkit misses them."""

OPENED_ON_A_GPU = ("libtorch_cuda_linalg.so", "libcaffe2_nvrtc.so")
"""Libraries of torch that no other is linked to: libtorch_cuda opens them when a GPU first needs them."""
OF_THE_SYSTEM = re.compile(r"(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|z|quadmath)|ld-linux-x86-64)\.so\.\d+")

STOP = """\
.section .rodata
message: .ascii ": called for a GPU, and this image is the one without CUDA\\n"
.set length, . - message
.text
stop:                    # with a function's name in rsi and its length in edx
  movl $1, %eax          # write
  movl $2, %edi          # to stderr
  syscall
  movl $1, %eax
  leaq message(%rip), %rsi
  movl $length, %edx
  syscall
  ud2
"""


@dataclass(frozen=True)
class Segment:
    """A program header, its fields in the order of the file."""

    type: int
    flags: int
    offset: int
    address: int
    physical: int
    file_size: int
    memory_size: int
    alignment: int

    def holds(self, other: "Segment") -> bool:
        return self.offset <= other.offset and other.offset + other.file_size <= self.offset + self.file_size


def main(site_packages: Path, without_cuda: bool) -> int:
    folder = site_packages / "torch" / "lib"
    before = size_of(site_packages)
    for pattern in UNUSED:
        for path in sorted(site_packages.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if without_cuda:
        for name in OPENED_ON_A_GPU:
            (folder / name).unlink()
        write_stand_ins(folder, site_packages)
    for library in sorted(folder.glob("*.so")):
        fatbin = read_section(library, ".nv_fatbin") if without_cuda else None
        cut(library, fatbin)
    sys.stderr.write(f"packages: {before / 1e9:.2f} GB, now {size_of(site_packages) / 1e9:.2f} GB\n")
    return 0


def cut(library: Path, unloaded: tuple[int, int] | None = None) -> None:
    """Write `library` again with its loaded segments alone, and zeros in place of addresses `unloaded`."""
    data = library.read_bytes()
    start, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    if data[:6] != b"\x7fELF\x02\x01" or start != HEADER_SIZE:
        raise ValueError(f"{library} is not a library of the expected form")
    segments = [Segment(*PROGRAM_HEADER.unpack_from(data, start + i * PROGRAM_HEADER.size)) for i in range(count)]
    if unloaded is not None:
        # One more segment needs one more header, and it only has room in the place of another one.
        segments = [part for one in segments if one.type != NOTE for part in split(one, *unloaded)]
        if len(segments) > count:
            raise ValueError(f"{library} has no header to spare")
    output, moved = bytearray(), {}
    for segment in segments:
        if segment.type == LOAD:
            output += bytes((segment.offset - len(output)) % PAGE)
            moved[segment] = len(output) - segment.offset
            output += data[segment.offset : segment.offset + segment.file_size]
    struct.pack_into("<Q", output, 40, 0)  # no table of sections any more
    struct.pack_into("<HHHH", output, 54, PROGRAM_HEADER.size, len(segments), 0, 0)
    struct.pack_into("<H", output, 62, 0)
    for i, segment in enumerate(segments):
        shift = next((moved[load] for load in moved if load.holds(segment)), 0)
        fields = replace(segment, offset=segment.offset + shift)
        PROGRAM_HEADER.pack_into(output, start + i * PROGRAM_HEADER.size, *vars(fields).values())
    mode = library.stat().st_mode
    library.unlink()
    library.write_bytes(output)
    library.chmod(mode)


def split(segment: Segment, start: int, end: int) -> Iterable[Segment]:
    """The segment in two, if it loads the addresses from start to end: before them, zeros and all, and after them."""
    if segment.type != LOAD or not segment.address <= start < end <= segment.address + segment.memory_size:
        yield segment
        return
    kept = end - end % PAGE - segment.address
    yield replace(segment, file_size=start - segment.address, memory_size=kept)
    yield Segment(
        LOAD,
        segment.flags,
        segment.offset + kept,
        segment.address + kept,
        segment.physical + kept,
        segment.file_size - kept,
        segment.memory_size - kept,
        segment.alignment,
    )


def write_stand_ins(folder: Path, site_packages: Path) -> None:
    users = sorted(folder.glob("*.so"))
    there = {path.name for path in (*folder.iterdir(), *site_packages.glob("nvidia/*/lib/*"))}
    asked = {name for library in users for name in read_needed(library)}
    stems = {name: stem(name) for name in asked - there if not OF_THE_SYSTEM.fullmatch(name)}
    functions: dict[str, dict[str, str]] = {name: {} for name in stems}
    for symbol, version in (pair for library in users for pair in read_undefined(library)):
        owners = [name for name in stems if symbol.lower().startswith(stems[name])]
        if owners:
            functions[max(owners, key=lambda name: len(stems[name]))][symbol] = version  # cublasLt before cublas
    for name, symbols in sorted(functions.items()):
        sys.stderr.write(f"{name}: a stand-in with {len(symbols)} functions\n")
        write_library(folder / name, symbols)


def stem(library: str) -> str:
    """The start of the names of a library's functions: libcuBLAS.so.13 → cublas."""
    return library.split(".so")[0].removeprefix("lib").removesuffix("_host").lower()


def read_section(library: Path, name: str) -> tuple[int, int] | None:
    """Addresses at which the section begins and ends; None if the library has none of that name."""
    found = re.search(rf" {re.escape(name)} +\w+ +([0-9a-f]+) [0-9a-f]+ ([0-9a-f]+)", readelf("--sections", library))
    return (int(found[1], 16), int(found[1], 16) + int(found[2], 16)) if found else None


def read_needed(library: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.+)\]", readelf("--dynamic", library))


def read_undefined(library: Path) -> list[tuple[str, str]]:
    """Functions that the library asks of others, with the version it asks for, "" if it names none."""
    rows = (line.split() for line in readelf("--dyn-syms", library).splitlines())
    names = [row[7] for row in rows if len(row) > 7 and row[6] == "UND"]
    return [(name.partition("@")[0], name.partition("@")[2]) for name in names]


def readelf(option: str, library: Path) -> str:
    command = ["readelf", "--wide", option, str(library)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout


def write_library(path: Path, symbols: dict[str, str]) -> None:
    """A shared library of that name with the functions that are the keys of `symbols`, under one version."""
    (version,) = set(symbols.values()) - {""} or {""}
    source = STOP
    for number, symbol in enumerate(sorted(symbols)):
        source += (
            f'.section .rodata\nname{number}: .ascii "{symbol}"\n.text\n.globl {symbol}\n.type {symbol}, @function\n'
        )
        source += f"{symbol}:\n  leaq name{number}(%rip), %rsi\n  movl ${len(symbol)}, %edx\n  jmp stop\n"
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "source.s").write_text(source, encoding="utf-8")
        (work / "versions").write_text(f"{version} {{ global: *; }};\n", encoding="utf-8")
        subprocess.run(["as", "-o", str(work / "object.o"), str(work / "source.s")], check=True)
        named = ["--version-script", str(work / "versions")] if version else []
        command = ["ld", "-shared", "-z", "noexecstack", "-soname", path.name, *named, "-o", str(path)]
        subprocess.run([*command, str(work / "object.o")], check=True)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), "--cpu" in sys.argv[2:]))
