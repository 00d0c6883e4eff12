"""The checks of `toolkit doctor`: what works on this machine, what does not, and the remedy.

A machine without a GPU is fine. A machine with a visible NVIDIA GPU that cannot be used has a problem.
"""

import ctypes
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from toolkit.doctor.diagnosis import Check
from toolkit.errors import one_line
from toolkit.machine import devices, hardware, limits
from toolkit.sessions import providers

DISTRIBUTION = "kd-toolkit"
TORCH = "torch "
"""The start of the name of each check of a torch device."""
LITTLE_DISK_BYTES = 2 * hardware.GIB
LITTLE_SHARED_MEMORY_BYTES = hardware.GIB // 16
"""The size in containers, unless somebody asks for more."""

MEND_CUDA_PROVIDER = "reinstall it with: pip install --force-reinstall torch 'onnxruntime-gpu[cuda,cudnn]'"
"""torch brings cuBLAS: the provider is linked to it, but its package does not require it."""
MEND_TORCH = "reinstall it with: pip install --force-reinstall torch"
MEND_DRIVER = "read the output of nvidia-smi, update the NVIDIA driver, and start containers with --gpus all"


def check_python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def check_packages() -> Check:
    """Every package that the installed toolkit requires is there, and not too old.

    onnxruntime counts as onnxruntime-gpu: it lacks only the CUDA provider, and check_providers checks that.
    """
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        return Check("packages", "note", f"{DISTRIBUTION} itself is not installed", "install it with: pip install -e .")
    found, wrong = [], []
    for requirement in asked:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        names = (requirement.name, "onnxruntime") if requirement.name == "onnxruntime-gpu" else (requirement.name,)
        installed = hardware.installed_versions(names)
        if not installed:
            wrong.append(f"{requirement.name} is not installed")
            continue
        name, version = next(iter(installed.items()))
        if requirement.specifier.contains(version, prereleases=True):
            found.append(f"{name} {version}")
        else:
            wrong.append(f"{name} is {version}, but {requirement.specifier} is required")
    if wrong:
        return Check("packages", "problem", "; ".join(wrong), f"repair it with: pip install --upgrade {DISTRIBUTION}")
    return Check("packages", "ok", ", ".join(found))


def check_twin_runtimes(has_gpu: bool) -> Iterator[Check]:
    """Both packages unpack into one folder. The later one overwrites the other, and the CUDA provider may get lost."""
    versions = hardware.installed_versions(("onnxruntime", "onnxruntime-gpu"))
    if len(versions) == 2:
        yield Check(
            "onnxruntime",
            "problem" if has_gpu else "note",
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            "keep one: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'",
        )


def check_cores() -> Check:
    usable, machine = limits.available_cores(), os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > usable:
        finding = f"OMP_NUM_THREADS is {threads}, but this process may use only {usable} cores"
        return Check("cores", "note", finding, "unset OMP_NUM_THREADS: more threads than cores are slower")
    limit = "" if usable == machine else f" of the machine's {machine} (affinity mask or cgroup quota)"
    return Check("cores", "ok", f"{usable}{limit}, {hardware.cpu_name()}")


def check_memory() -> Check:
    size_bytes = limits.memory_bytes()
    finding = f"this process may use {size_bytes / hardware.GIB:.1f} GiB"
    if size_bytes < limits.LITTLE_MEMORY_BYTES:
        return Check("memory", "note", finding, "training may be killed; give it 2 GiB or more")
    return Check("memory", "ok", finding)


def check_shared_memory() -> Check:
    size_bytes = limits.shared_memory_bytes()
    if size_bytes is None:
        return Check("/dev/shm", "ok", "missing, and not needed: threads decode the images")
    finding = f"{size_bytes / hardware.GIB:.2f} GiB"
    if size_bytes < LITTLE_SHARED_MEMORY_BYTES:
        remedy = "one process does not need more; for torchrun on several GPUs start the container with --shm-size=1g"
        return Check("/dev/shm", "note", finding, remedy)
    return Check("/dev/shm", "ok", finding)


def check_devices(gpus: list[str]) -> Iterator[Check]:
    """torch on the CPU and on every GPU: it really computed a small product there."""
    try:
        found = devices.torch_devices()
    except (ImportError, OSError) as error:  # a broken torch raises either of them while it loads
        yield Check("torch", "problem", f"cannot be imported: {one_line(error)}", MEND_TORCH)
        return
    for device, reason in found.items():
        if not reason:
            yield Check(f"{TORCH}{device}", "ok", "allocated and multiplied")
        elif device == "cpu":
            yield Check(f"{TORCH}cpu", "problem", reason, MEND_TORCH)
        else:
            shown = ", ".join(gpus) or "a GPU"
            yield Check(f"{TORCH}{device}", "problem", f"{shown} is visible, but unusable: {reason}", MEND_DRIVER)
    if not gpus and len(found) == 1:
        yield Check("gpu", "ok", "no NVIDIA GPU is visible; everything runs on the CPU")


def check_cuda() -> Iterator[Check]:
    """The driver's CUDA against the one that torch was built for; nothing if there is no driver."""
    try:
        import torch
    except (ImportError, OSError):  # check_devices reports this
        return
    driver = driver_cuda()
    if driver is None or torch.version.cuda is None:
        return
    major, minor = (int(part) for part in torch.version.cuda.split(".")[:2])
    finding = f"the driver has {driver[0]}.{driver[1]}, torch was built for {major}.{minor}"
    if driver >= (major, minor):
        yield Check("cuda", "ok", finding)
    elif driver[0] == major:
        remedy = (
            f"if a kernel fails, update the driver to one for CUDA {major}.{minor}: with this driver, compiled kernels"
            " run, but kernels that are compiled at their first call may fail"
        )
        yield Check("cuda", "note", finding, remedy)
    else:
        yield Check("cuda", "problem", finding, f"update the NVIDIA driver to one for CUDA {major}.{minor}")


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the NVIDIA driver supports, as (major, minor); None if there is no driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else (version.value // 1000, version.value % 1000 // 10)


def check_providers(has_gpu: bool) -> Iterator[Check]:
    """onnxruntime's execution providers: each really ran a small model, whatever the list says."""
    try:
        found = providers.working_providers()
    except (ImportError, OSError) as error:
        yield Check("onnxruntime", "problem", f"cannot be imported: {one_line(error)}", MEND_CUDA_PROVIDER)
        return
    for provider, reason in found.items():
        name = f"onnxruntime {provider.removesuffix('ExecutionProvider').lower()}"
        if not reason:
            yield Check(name, "ok", "ran a small model")
        elif provider == providers.PROVIDERS["cpu"] or has_gpu:
            yield Check(name, "problem", f"listed, but does not run: {reason}", MEND_CUDA_PROVIDER)
        else:
            yield Check(name, "note", f"listed, but does not run: {reason}", "nothing to do: it needs a GPU")
    if has_gpu and providers.PROVIDERS["cuda"] not in found:
        yield Check("onnxruntime cuda", "problem", "this onnxruntime is built without CUDA", MEND_CUDA_PROVIDER)


def check_cache() -> Check:
    from toolkit.data.cache import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"written")
    except OSError as error:
        remedy = "set KD_TOOLKIT_CACHE to a writable folder"
        return Check("cache", "problem", f"{folder} cannot be written: {error.strerror}", remedy)
    return Check("cache", "ok", f"{folder} can be written")


def check_disk() -> Check:
    """Free space for decoded images and model directories."""
    from toolkit.data.cache import cache_folder

    folders = {
        folder.stat().st_dev: folder for folder in (Path.cwd(), _existing(cache_folder()))
    }  # one per file system
    free = {folder: shutil.disk_usage(folder).free for folder in folders.values()}
    finding = ", ".join(f"{size / hardware.GIB:.1f} GiB free at {folder}" for folder, size in free.items())
    if min(free.values()) < LITTLE_DISK_BYTES:
        return Check("disk", "note", finding, "free some space, or set KD_TOOLKIT_CACHE to a folder on a larger disk")
    return Check("disk", "ok", finding)


def check_default_data() -> Check:
    from toolkit.data.cache import cache_folder
    from toolkit.data.idx import find_idx_files
    from toolkit.data.named import FASHION_MNIST_SYSTEM_FOLDER

    own = cache_folder("fashion-mnist")
    for folder in (own, own / "FashionMNIST" / "raw", FASHION_MNIST_SYSTEM_FOLDER):
        if os.access(folder, os.R_OK | os.X_OK) and find_idx_files(folder):
            return Check("fashion-mnist", "ok", f"in {folder}")
    remedy = "the first use downloads it; without a network: make data, or apt install dataset-fashion-mnist"
    return Check("fashion-mnist", "note", "not on this machine", remedy)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))
