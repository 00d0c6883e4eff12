"""`toolkit doctor --deep`: this machine at work for some 20 s, on the first GPU that works, else on the CPU.

Results are compared with the CPU's. Speeds are reported, with a note if something must be slowing them down.
"""

import contextlib
import io
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from toolkit.doctor.ceilings import bus_bytes_s, copy_bytes_s, product_flop_s
from toolkit.doctor.checks import MEND_CUDA_PROVIDER, MEND_DRIVER, MEND_TORCH
from toolkit.doctor.diagnosis import Check
from toolkit.errors import one_line
from toolkit.machine import hardware
from toolkit.machine.devices import fp32_products_in
from toolkit.machine.limits import available_cores
from toolkit.runtimes.placement import Placement
from toolkit.sessions import providers

if TYPE_CHECKING:
    from toolkit.networks.classifier import Classifier

Found = TypeVar("Found")

IMAGE_SIZE = 160
"""px, of training and of the exported graph"""
BATCHES = {"cpu": (32, 2), "gpu": (64, 40)}
"""images per step, and steps per epoch"""
SLOW_BUS_BYTES_S = 3e9
"""from pinned memory: less than four lanes of PCIe 3.0; a GPU has sixteen of 4.0 or newer"""
LITTLE_FREE = 0.5
"""share of a GPU's memory; if less is free, others use the GPU too"""
PRODUCT_SIDE = 256
PRODUCT_ERROR = 0.02
"""relative; bfloat16 rounds each number by up to 0.004"""
LOGITS_ERROR = 0.01
"""of the largest logit; TF32 rounds each number by up to 0.0005"""
ALL_REDUCE_BYTES = 2**26
ALL_REDUCE_CALLS = 5
ALL_REDUCE_S = 90.0
"""s after which processes that do not find one another are killed"""

MEND_EXPORT = "reinstall them with: pip install --force-reinstall torch onnx onnxscript"
MEND_ONNXRUNTIME = "reinstall it with: pip install --force-reinstall onnxruntime"
MEND_GPU_CODE = (
    "use a newer GPU, or a torch that was built for this one: https://pytorch.org/get-started/previous-versions"
)
MEND_NCCL = (
    "start a container with --shm-size=1g; NCCL_DEBUG=INFO says what NCCL tries, NCCL_P2P_DISABLE=1 goes through the"
    " host; or train on one GPU, without torchrun"
)


def examine_at_work(devices: Sequence[str]) -> Iterator[Check]:
    """`devices` are torch's working devices, as devices.torch_devices names them, including `cpu`."""
    import torch

    torch.set_num_threads(available_cores())
    gpus = [device for device in devices if device != "cpu"]
    for gpu in gpus:
        yield check_code(gpu)
        yield check_free_memory(gpu)
    device = gpus[0] if gpus else "cpu"
    mend = MEND_DRIVER if gpus else MEND_TORCH
    yield tried(f"copies on {device}", lambda: check_copies(device), mend)
    yield tried(f"products on {device}", lambda: check_products(device), mend)
    yield tried(f"training on {device}", lambda: check_training(device), mend)
    yield from check_graph()
    if len(gpus) > 1:
        yield tried("nccl", lambda: check_all_reduce(gpus), MEND_NCCL)


def tried(name: str, look: Callable[[], Check], remedy: str) -> Check:
    """The finding of `look`, or its failure as a problem."""
    found = _attempt(look)
    return Check(name, "problem", f"failed: {found}", remedy) if isinstance(found, str) else found


def _attempt(work: Callable[[], Found]) -> Found | str:
    """The result of `work`, or why it failed: drivers raise errors of their own, so all count. Prints nothing."""
    with providers.captured_output(), contextlib.redirect_stderr(io.StringIO()):
        try:
            return work()
        except Exception as error:
            return one_line(error)


def check_code(gpu: str) -> Check:
    """Whether torch has machine code for this GPU."""
    import torch

    name, (major, minor) = torch.cuda.get_device_name(gpu), torch.cuda.get_device_capability(gpu)
    built = torch.cuda.get_arch_list()
    found = find_code(major, minor, built)
    finding = f"{name} is sm_{major}{minor}; this torch has code for {', '.join(built)}"
    if found.startswith("sm_"):
        return Check(f"code for {gpu}", "ok", finding)
    if found:
        remedy = "the first run of each kernel takes long, and fails if the driver is older than torch's CUDA"
        return Check(f"code for {gpu}", "note", f"{finding}: the driver compiles it from {found}", remedy)
    return Check(f"code for {gpu}", "problem", f"{finding}, but none that runs there", MEND_GPU_CODE)


def find_code(major: int, minor: int, built: Sequence[str]) -> str:
    """The entry of `built` (sm_80, compute_90, ...) that runs on a GPU of that compute capability; "" if none does.

    Machine code runs on its own generation, from its own minor version on; with the letter a, on that version alone.
    PTX text (compute_..) can be compiled for any newer GPU.
    """
    best = ""
    for name in built:
        parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if parts is None:
            continue
        kind, theirs, letter = parts[1], (int(parts[2]), int(parts[3])), parts[4]
        same = theirs == (major, minor)
        if kind == "sm" and (same or (letter != "a" and theirs[0] == major and theirs[1] <= minor)):
            return name
        if kind == "compute" and (same or (not letter and theirs <= (major, minor))):
            best = name
    return best


def check_free_memory(gpu: str) -> Check:
    import torch

    free, total = torch.cuda.mem_get_info(gpu)
    finding = f"{free / hardware.GIB:.1f} of {total / hardware.GIB:.1f} GiB are free"
    if free < LITTLE_FREE * total:
        return Check(f"memory of {gpu}", "note", finding, "nvidia-smi lists the processes that use the rest")
    return Check(f"memory of {gpu}", "ok", finding)


def check_copies(device: str) -> Check:
    name, inside = f"copies on {device}", f"{copy_bytes_s(device) / 1e9:,.0f} GB/s in its memory"
    if device == "cpu":
        return Check(name, "ok", inside)
    pageable, pinned = (bus_bytes_s(device, pinned=pinned) for pinned in (False, True))
    finding = f"{inside}, {pageable / 1e9:.1f} GB/s from the host, {pinned / 1e9:.1f} from pinned memory"
    if pinned < SLOW_BUS_BYTES_S:
        remedy = "check the link: nvidia-smi --query-gpu=pcie.link.gen.current,pcie.link.width.current --format=csv"
        return Check(name, "note", finding, remedy)
    return Check(name, "ok", finding)


def check_products(device: str) -> Check:
    """Products of matrices: their speed, and their error against float64 on the CPU."""
    import torch

    from toolkit.distill.precision import FloatArithmetic, has_fast_bf16

    speeds = []
    torch.manual_seed(0)
    a, b = (torch.randn(PRODUCT_SIDE, PRODUCT_SIDE) for _ in range(2))
    expected = a.double() @ b.double()
    precisions: tuple[FloatArithmetic, ...] = ("fp32", "bf16") if has_fast_bf16(device) else ("fp32",)
    for precision in precisions:
        called = "tf32" if precision == "fp32" and device != "cpu" else precision
        with fp32_products_in("tf32"):
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            product = (a.to(device, dtype) @ b.to(device, dtype)).double().cpu()
            speeds.append(f"{product_flop_s(device, precision, limit_s=1.0) / 1e12:.3g} TFLOP/s in {called}")
        error = float((product - expected).norm() / expected.norm())
        if not error < PRODUCT_ERROR:
            raise RuntimeError(f"a product in {called} is wrong by {error:.1%}")
    return Check(f"products on {device}", "ok", ", ".join(speeds))


def check_training(device: str) -> Check:
    """A short training of the default student with stored logits, by the real engine."""
    import torch

    from toolkit.distill.rehearsal import COUNTED_STEPS, Rehearsal

    batch, steps = BATCHES["cpu" if device == "cpu" else "gpu"]
    rehearsal = Rehearsal(device, IMAGE_SIZE, batch, steps)
    finding = (
        f"{rehearsal.images_per_second():,.0f} images per second (student, {IMAGE_SIZE} px, {rehearsal.precision},"
        f" stored logits, batches of {batch})"
    )
    if launches := replace(rehearsal, steps=COUNTED_STEPS).count_launches():
        finding += f"; a step takes {launches.kernels:.0f} kernels and {launches.sent:.0f} copies from the host"
    elif device != "cpu":
        finding += "; kernels were not counted, because CUDA's profiling interface shows none"
    if device != "cpu":
        cudnn: Any = torch.backends.cudnn
        version = cudnn.version() or 0
        finding += f"; cuDNN {version // 10_000}.{version % 10_000 // 100}"
    return Check(f"training on {device}", "ok", finding)


def check_graph() -> Iterator[Check]:
    """The student as `toolkit export` writes it, through every working provider of onnxruntime."""
    working = providers.working_providers()
    names = [name for name, provider in providers.PROVIDERS.items() if working.get(provider) == ""]
    with tempfile.TemporaryDirectory(prefix="doctor.") as folder:
        path = Path(folder, "student.onnx")
        made = _attempt(lambda: write_graph(path))
        if isinstance(made, str):
            yield Check("onnx graph", "problem", f"cannot be written: {made}", MEND_EXPORT)
            return
        for name in names:
            remedy = MEND_ONNXRUNTIME if name == "cpu" else MEND_CUDA_PROVIDER
            yield tried(f"onnx graph {name}", partial(compare, path, name, *made), remedy)


def write_graph(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write the untrained student to `path`; return images uint8 (N, S, S, 3) and torch's logits on the CPU."""
    import onnx
    import torch

    from toolkit.data.preprocess import Preprocess
    from toolkit.graphs.build import DeployedGraph, build_graph, set_metadata
    from toolkit.networks import registry
    from toolkit.networks.classifier import Classifier
    from toolkit.recipe import Recipe

    torch.manual_seed(0)
    data, classes = Recipe().data, [str(number) for number in range(10)]
    classifier = Classifier(registry.build("depthwise", len(classes)), data.mean, data.std)
    images = np.random.default_rng(0).integers(0, 256, (8, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    pixels = torch.from_numpy(images)
    settle(classifier, pixels.permute(0, 3, 1, 2) / 255)
    with torch.inference_mode():
        logits, _ = DeployedGraph(classifier)(pixels)
    model = build_graph(classifier, IMAGE_SIZE, Recipe().export.opset)
    preprocess = Preprocess(IMAGE_SIZE, IMAGE_SIZE, data.mean, data.std)
    set_metadata(model, {"classes": json.dumps(classes), "preprocess": preprocess.to_json()})
    onnx.save_model(model, path)
    return images, logits.numpy()


def settle(classifier: "Classifier", images: Any) -> None:
    """Take the batch norms' statistics from `images`, so that the logits of an untrained network differ."""
    import torch

    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches, here of one
    with torch.no_grad():
        classifier.train()(images)
    classifier.eval()


def compare(path: Path, provider: str, images: np.ndarray, expected: np.ndarray) -> Check:
    """The check of the graph on `provider`: the providers of its operators, and its logits against `expected` ones."""
    from toolkit.runtimes.onnxruntime import OnnxPredictor

    predictor = OnnxPredictor(path, provider)
    difference = float(np.abs(predictor.logits(images) - expected).max())
    largest = float(np.abs(expected).max())
    placed = Placement.of(predictor._session).nodes
    finding = (
        f"largest difference from torch on the CPU {difference:.1g}, logits up to {largest:.2g};"
        f" {' and '.join(f'{len(nodes)} operators on {name}' for name, nodes in placed.items())}"
    )
    if not difference <= LOGITS_ERROR * largest:
        return Check(f"onnx graph {provider}", "problem", finding, "choose another --provider, and report this")
    return Check(f"onnx graph {provider}", "ok", finding)


def check_all_reduce(devices: Sequence[str]) -> Check:
    """A sum over one process per device, as torchrun would compute it: nccl between GPUs, gloo between CPUs."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="doctor.") as folder:
        meeting = Path(folder, "meeting")
        processes = [
            context.Process(
                target=_add_up, args=(rank, list(devices), str(meeting), ALL_REDUCE_S, results), daemon=True
            )
            for rank in range(len(devices))
        ]
        for process in processes:
            process.start()
        _wait_for(processes)
    answers = [results.get() for _ in processes]
    if not all(right for _, right in answers):
        raise RuntimeError("the sum is wrong")
    seconds = max(took for took, _ in answers)
    finding = f"{len(devices)} processes added up {ALL_REDUCE_BYTES / 1e6:.0f} MB in {seconds * 1e3:.1f} ms"
    return Check("nccl" if devices[0] != "cpu" else "gloo", "ok", finding)


def _wait_for(processes: Sequence[BaseProcess]) -> None:
    """RuntimeError unless all end well within ALL_REDUCE_S; the rest are killed."""
    end = time.monotonic() + ALL_REDUCE_S
    while (left := [process for process in processes if process.is_alive()]) and time.monotonic() < end:
        if any(process.exitcode for process in processes):
            break  # the others would wait for it
        wait([process.sentinel for process in left], end - time.monotonic())
    left = [process for process in left if process.is_alive()]  # one may have failed after the last look
    for process in left:
        process.kill()
        process.join()
    if failed := [process.exitcode for process in processes if process.exitcode and process not in left]:
        raise RuntimeError(f"{len(failed)} of {len(processes)} processes failed, exit code {failed[0]}")
    if left:
        raise RuntimeError(f"{len(left)} of {len(processes)} processes did not end within {ALL_REDUCE_S:.0f} s")


def _add_up(rank: int, devices: list[str], meeting: str, timeout_s: float, results: Any) -> None:
    """One of the processes: it puts the s of a sum, and whether it was right, into `results`."""
    import torch
    import torch.distributed as dist

    gpu = None if devices[rank] == "cpu" else torch.device(devices[rank])
    if gpu is not None:
        torch.cuda.set_device(gpu)
    dist.init_process_group(
        "gloo" if gpu is None else "nccl",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=len(devices),
        timeout=timedelta(seconds=timeout_s),
        device_id=gpu,
    )
    values = torch.full((ALL_REDUCE_BYTES // 4,), float(rank + 1), device=devices[rank])
    took, right = [], True
    for _ in range(ALL_REDUCE_CALLS):
        start = time.perf_counter()
        total = values.clone()
        dist.all_reduce(total)
        right &= bool((total == sum(range(1, len(devices) + 1))).all())  # waits for the sum
        took.append(time.perf_counter() - start)
    results.put((min(took), right))
    dist.destroy_process_group()
