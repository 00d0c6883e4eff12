"""Make sure that Fashion-MNIST is on this machine; `make data` runs this. No root needed.

It is looked for in the toolkit's cache and in the system's folder, then fetched with torchvision, then unpacked from
the Debian package dataset-fashion-mnist. Fetched files lie in the cache, whole and checked, or not at all.
"""

import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""File → SHA-256 of what it unpacks to. The packed files differ between the sources, their contents do not."""

PACKAGE = "dataset-fashion-mnist"
TIMEOUT_S = 20
"""s; how long a silent server is waited for."""


def main() -> int:
    cache = cache_folder() / "fashion-mnist"
    system = Path(os.environ.get("FASHION_MNIST_SYSTEM") or "/usr/share/datasets/fashion-mnist")
    for folder in (cache, cache / "FashionMNIST" / "raw", system):
        if is_whole(folder):
            say(f"Fashion-MNIST is in {folder}")
            return 0
    failures = []
    for source, fetch in (("torchvision's download", fetch_with_torchvision), ("the Debian package", fetch_with_apt)):
        try:
            with tempfile.TemporaryDirectory(prefix="fashion-mnist.") as temporary:
                install(fetch(Path(temporary)), cache)
        except Exception as error:  # after any failure of one source, the next one is tried
            failures.append(f"{source}: {first_line(error)}")
            continue
        say(f"Fashion-MNIST is in {cache}, from {source}")
        return 0
    say(
        f"Fashion-MNIST is not on this machine and cannot be fetched ({'; '.join(failures)}); "
        f"put {', '.join(SHA256)} into {cache}, or install {PACKAGE} with apt"
    )
    return 1


def cache_folder() -> Path:
    """The folder of toolkit.data.cache, written here again because this also runs without the toolkit."""
    if own := os.environ.get("KD_TOOLKIT_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "kd-toolkit"


def is_whole(folder: Path) -> bool:
    return all(sha256_unpacked(folder / name) == expected for name, expected in SHA256.items())


def sha256_unpacked(path: Path) -> str:
    """SHA-256 of the gzip file's content, "" if it is missing or broken."""
    try:
        with gzip.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error):
        return ""


def fetch_with_torchvision(folder: Path) -> Path:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    socket.setdefaulttimeout(TIMEOUT_S)
    for mirror in FashionMNIST.mirrors:
        for name, md5 in FashionMNIST.resources:
            download_url(f"{mirror}{name}", str(folder), md5=md5)
    return folder


def fetch_with_apt(folder: Path) -> Path:
    """Download and unpack the Debian package under `folder`; package lists go there too if there are none."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise RuntimeError(f"{program} is not here")
    lists, archives = folder / "lists", folder / "archives"
    for path in (lists, archives):
        (path / "partial").mkdir(parents=True)
    # Downloading as this user: apt's own user cannot write into a private temporary folder.
    options = ["-qq", "-o", "APT::Sandbox::User=", "-o", f"Acquire::http::Timeout={TIMEOUT_S}"]
    places = {"Dir::State::lists": lists, "Dir::Cache": folder, "Dir::Cache::archives": archives}
    own = [*options, *(word for key, path in places.items() for word in ("-o", f"{key}={path}"))]
    try:
        run(["apt-get", *options, "download", PACKAGE], folder)
    except subprocess.CalledProcessError:
        run(["apt-get", *own, "update"], folder)
        run(["apt-get", *own, "download", PACKAGE], folder)
    package = next(folder.glob("*.deb"))
    run(["dpkg-deb", "-x", str(package), "unpacked"], folder)
    return next((folder / "unpacked").rglob("train-images-idx3-ubyte.gz")).parent


def install(source: Path, cache: Path) -> None:
    """Check the four files, copy each into the cache and rename it into place."""
    for name, expected in SHA256.items():
        if sha256_unpacked(source / name) != expected:
            raise RuntimeError(f"{name} is not what it should be (SHA-256)")
    cache.mkdir(parents=True, exist_ok=True)
    for name in SHA256:
        beside = cache / f".{name}.{os.getpid()}"
        try:
            shutil.copyfile(source / name, beside)
            beside.replace(cache / name)
        finally:
            beside.unlink(missing_ok=True)


def run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, encoding="utf-8", timeout=600)


def first_line(error: Exception) -> str:
    text = str(getattr(error, "stderr", "") or error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
