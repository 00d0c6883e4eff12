"""The parts of a training step's time: the views, the whole step, and each block of the student by itself.

    python benchmarks/step_parts.py [--size 256] [--batch 64] [--precision bf16] [--rounds 9]

times them in turns on random images, with all cores, and prints JSON: the median ms of each. A block's time is that of
its forward and backward pass on random maps, so that the blocks need not add up to the step. To see a CPU of AVX2
alone, set ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 in the environment.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.data.view_draws import draw_views
from toolkit.data.views import render_views
from toolkit.distill.precision import autocast
from toolkit.machine.devices import keep_freed_memory
from toolkit.machine.hardware import describe_hardware, describe_versions
from toolkit.machine.limits import available_cores
from toolkit.networks import registry
from toolkit.networks.small_maps import place
from toolkit.recipe import Recipe

NUM_CLASSES = 10


def main() -> None:
    options = _parse()
    torch.set_num_threads(available_cores())
    keep_freed_memory()
    torch.manual_seed(0)
    student = registry.build("depthwise", NUM_CLASSES, image_size=options.size)
    place(student, "cpu")
    images = torch.rand(options.batch, 3, options.size, options.size).contiguous(memory_format=torch.channels_last)
    works: dict[str, Callable[[], object]] = {
        "views, turned by up to 15 degrees": _views(options.size, options.batch),
        "step of the student": partial(_step, student, images, options.precision),
    }
    for number, (block, maps) in enumerate(_blocks(student, images, options.precision)):
        works[f"block {number}, maps of {maps.shape[2]} px"] = partial(_pass, block, maps, options.precision)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.rounds + 2):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - start) * 1e3)
    result = {
        "size_px": options.size,
        "batch": options.batch,
        "precision": options.precision,
        "rounds": options.rounds,
        "median_ms": {name: round(statistics.median(taken[2:]), 2) for name, taken in times.items()},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "hardware": describe_hardware(),
        "torch": describe_versions()["torch"],
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


def _views(size: int, batch: int) -> Callable[[], object]:
    settings = [f"data.image_size={size}", "data.resize=0", "data.rotation_degrees=15.0"]
    data = Recipe().with_overrides(settings).data
    canvas = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    sizes = np.full((batch, 2), size)
    return partial(render_views, canvas, sizes, draw_views(data, sizes, np.arange(batch), seed=0, view=0), data)


def _blocks(student: nn.Module, images: Tensor, precision: str) -> list[tuple[nn.Module, Tensor]]:
    """Every block but the global average, with maps as they reach it."""
    blocks, maps = [], images
    for block in list(student.cnn)[:-1]:  # type: ignore[call-overload]
        blocks.append((block, maps))
        with torch.no_grad(), autocast("cpu", precision):  # type: ignore[arg-type]
            maps = block(maps)
    return blocks


def _pass(block: nn.Module, maps: Tensor, precision: str) -> None:
    """Forward and backward; images need no gradient, the maps of later blocks do."""
    maps = maps.detach().requires_grad_(maps.shape[1] > 3)
    with autocast("cpu", precision):  # type: ignore[arg-type]
        output = block(maps)
    output.backward(torch.ones_like(output))


def _step(student: nn.Module, images: Tensor, precision: str) -> None:
    """Forward, cross-entropy and backward, without the optimiser, which takes a millisecond."""
    with autocast("cpu", precision):  # type: ignore[arg-type]
        logits = student(images)
    F.cross_entropy(logits.float(), torch.zeros(len(images), dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]
    student.zero_grad()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="px")
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


if __name__ == "__main__":
    main()
