"""The cost of a training step on this card, by size, batch and teacher; the last line printed is one JSON object.

    python benchmarks/gpu_step.py                   about a minute on a GPU; docs/gpu.md has what to expect
    python benchmarks/gpu_step.py --device cpu      a few small rows, which show that it runs
    python benchmarks/gpu_step.py --cudnn-benchmark the same with the kernels that cuDNN finds fastest by trying them

Needs no data: the engine trains the student on noise (toolkit/distill/rehearsal.py). A row has the images per second of
the faster of two epochs, after a first one. Beside it stands the limit by the card's measured peaks of arithmetic and
memory, if every layer reads its input and writes its output once, and the share of it that is reached. A row that fails
says why, and the others go on.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from limits import ELEMENT_BYTES, Limits, count_elements, count_forward_flop, count_training_flop

from toolkit import console
from toolkit.distill.precision import FloatArithmetic, has_fast_bf16
from toolkit.distill.rehearsal import CLASSES, COUNTED_STEPS, Rehearsal
from toolkit.doctor.ceilings import bus_bytes_s, copy_bytes_s, launch_seconds, product_flop_s
from toolkit.doctor.checks import driver_cuda
from toolkit.errors import DeviceError, one_line
from toolkit.machine.devices import fp32_products_in, keep_freed_memory, pick_device
from toolkit.machine.hardware import describe_hardware, describe_versions
from toolkit.machine.limits import available_cores
from toolkit.networks import registry
from toolkit.sessions.providers import captured_output


@dataclass(frozen=True)
class Row:
    image_size_px: int
    batch_size: int
    rotation_degrees: float = 0.0


ROWS = {
    "gpu": (Row(256, 64, 15.0), Row(256, 64), Row(256, 256, 15.0), Row(160, 64), Row(32, 128)),
    "cpu": (Row(64, 8, 15.0), Row(32, 16)),
}
IMAGES = {"gpu": 4096, "cpu": 32}
"""images per epoch; at 256 px 4,096 are 1 GB"""


def main() -> None:
    options = _parse()
    start = time.perf_counter()
    torch.set_num_threads(available_cores())
    keep_freed_memory()
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    try:
        device = pick_device(options.device)
    except DeviceError as error:
        sys.exit(f"error: {error}")
    kind = "cpu" if device == "cpu" else "gpu"
    precision: FloatArithmetic = "bf16" if has_fast_bf16(device) else "fp32"
    ceilings = measure_ceilings(device)
    console.say("  ".join(f"{name} {value:.4g}" for name, value in ceilings.items()))
    rows = []
    for row in ROWS[kind]:
        for teacher in ("live", "stored"):
            rows.append(measure_row(row, teacher, device, precision, ceilings, options.images or IMAGES[kind]))
            console.say("  ".join(_tell(rows[-1])))
    versions = describe_versions()
    result = {
        "device": device,
        "hardware": describe_hardware(device),
        "torch": versions["torch"],
        "toolkit": versions["toolkit"],
        "cuda": torch.version.cuda,
        "driver_cuda": driver_cuda(),
        "date": time.strftime("%Y-%m-%d"),
        "precision": precision,
        "cudnn_benchmark": options.cudnn_benchmark,
        "ceilings": ceilings,
        "rows": rows,
        "seconds": time.perf_counter() - start,
    }
    sys.stdout.write(json.dumps(result) + "\n")


def measure_ceilings(device: str) -> dict[str, float]:
    """GB/s, TFLOP/s and μs, as their names say."""
    names: tuple[FloatArithmetic, ...] = ("fp32", "bf16") if has_fast_bf16(device) else ("fp32",)
    found = {f"{name}_tflop_s": product_flop_s(device, name) / 1e12 for name in names}
    found |= {"copy_gb_s": copy_bytes_s(device) / 1e9, "launch_us": launch_seconds(device) * 1e6}
    if device != "cpu":
        with fp32_products_in("tf32"):
            found["tf32_tflop_s"] = product_flop_s(device, "fp32") / 1e12
        for name, pinned in (("pageable_gb_s", False), ("pinned_gb_s", True)):
            found[name] = bus_bytes_s(device, pinned=pinned) / 1e9
    return found


def measure_row(
    row: Row, teacher: str, device: str, precision: FloatArithmetic, ceilings: dict[str, float], images: int
) -> dict[str, Any]:
    """Speed, limit and launches of one row, or `error`."""
    found: dict[str, Any] = vars(row) | {"teacher": teacher}
    limit = find_limits(row.image_size_px, teacher, precision, ceilings)
    settings = (f"data.rotation_degrees={row.rotation_degrees}",)
    steps = max(1, images // row.batch_size)
    rehearsal = Rehearsal(device, row.image_size_px, row.batch_size, steps, live=teacher == "live", settings=settings)
    try:
        with captured_output() as said:
            speed = rehearsal.images_per_second()
            remarks = _remarks(said())
            launches = replace(rehearsal, steps=COUNTED_STEPS).count_launches()
    except Exception as error:  # drivers raise errors of their own; the other rows are worth having
        return found | {"error": one_line(error)}
    found |= {
        "remarks": remarks,
        "img_s": speed,
        "limit_img_s": limit.images_s,
        "share_of_limit": speed / limit.images_s,
    }
    found |= {"gflop_an_image": limit.flop / 1e9, "mb_an_image_at_least": limit.bytes / 1e6}
    return found | {name: getattr(launches, name, None) for name in ("kernels", "sent", "read")}


@cache
def _count(name: str, size: int) -> tuple[float, float, int]:
    """Operations of training and of a forward pass, and numbers that go through the layers, of one image."""
    network = registry.build(name, CLASSES).eval()  # one small image is too little for a batch norm to learn from
    training = count_training_flop(network, size) if name == "depthwise" else 0.0
    return training, count_forward_flop(network, size), count_elements(network, torch.rand(1, 3, size, size))


def find_limits(size: int, teacher: str, precision: FloatArithmetic, ceilings: dict[str, float]) -> Limits:
    """Work of one training image, with the forward pass of a live teacher."""
    flop, _, elements = _count("depthwise", size)
    moved = 3 * elements
    if teacher == "live":
        _, forward, elements = _count("resnet18", size)
        flop, moved = flop + forward, moved + elements
    peaks = ceilings[f"{precision}_tflop_s"] * 1e12, ceilings["copy_gb_s"] * 1e9
    return Limits(flop, ELEMENT_BYTES[precision] * moved, *peaks)


def _remarks(said: str) -> list[str]:
    """Remarks of the engine, without its line per epoch and without the profiler's log."""
    return [line for line in said.splitlines() if line and not re.match(r"student +\d|\w+:\d{4}-\d\d-\d\d ", line)]


def _tell(row: dict[str, Any]) -> Iterator[str]:
    yield f"{row['image_size_px']} px, batch {row['batch_size']}, {row['teacher']}, ±{row['rotation_degrees']:g}°:"
    if "error" in row:
        yield f"failed: {row['error']}"
        return
    yield f"{row['img_s']:,.0f} img/s"
    yield f"{row['share_of_limit']:.0%} of the limit"
    if row["kernels"] is not None:
        yield f"{row['kernels']:.0f} kernels, {row['sent']:.1f} copies from the host a step"
    yield from row["remarks"]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, help="an epoch; 4,096, or 32 on the CPU")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="cuDNN tries its kernels once for each size")
    return parser.parse_args()


if __name__ == "__main__":
    main()
