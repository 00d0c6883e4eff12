"""Convolutions on maps of a few places: oneDNN's against the products of toolkit/networks/small_maps.py, one thread.

    python benchmarks/small_maps.py [--precision bf16] [--rounds 4] [--batch 256]

times forward and backward pass of the last layers of ResNet18 and of the depthwise student, as images of 16 to 64 px
leave them; in turns, the least of the rounds. Prints JSON: ms of both for each layer. To see a CPU of AVX2 alone, set
ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 in the environment.
"""

import argparse
import json
import sys
import time

import torch
from torch import Tensor, nn

from toolkit.distill.precision import autocast
from toolkit.machine.devices import keep_freed_memory
from toolkit.machine.hardware import describe_hardware, describe_versions
from toolkit.networks.small_maps import use_small_map_convolutions

LAYERS = [  # channels in and out, kernel, groups, places a side
    (512, 512, 3, 1, 1),
    (512, 512, 3, 1, 2),
    (256, 256, 3, 1, 2),
    (256, 256, 3, 256, 1),
    (256, 256, 3, 256, 2),
    (256, 256, 1, 1, 1),
    (256, 256, 1, 1, 2),
]


def main() -> None:
    options = _parse()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    for inputs, outputs, kernel, groups, side in LAYERS:
        layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)
        ours = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups))
        ours.load_state_dict({f"0.{name}": value for name, value in layer.state_dict().items()})
        use_small_map_convolutions(ours)
        maps = torch.randn(options.batch, inputs, side, side)
        networks = [network.to(memory_format=torch.channels_last) for network in (layer, ours)]  # type: ignore[call-overload]
        maps = maps.contiguous(memory_format=torch.channels_last)
        ms = [[_ms(network, maps, options.precision) for network in networks] for _ in range(options.rounds + 1)][1:]
        plain_ms, products_ms = (min(times) for times in zip(*ms, strict=True))
        rows.append(
            {
                "layer": f"{kernel}x{kernel}{' depthwise' if groups > 1 else ''}, {inputs} to {outputs} channels",
                "places": f"{side}x{side}",
                "onednn_ms": round(plain_ms, 2),
                "products_ms": round(products_ms, 2),
                "times": round(plain_ms / products_ms, 1),
            }
        )
    result = {"batch": options.batch, "precision": options.precision, "rounds": options.rounds, "layers": rows}
    result |= {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "hardware": describe_hardware()}
    sys.stdout.write(json.dumps(result | {"torch": describe_versions()["torch"]}, indent=1) + "\n")


def _ms(network: nn.Module, maps: Tensor, precision: str) -> float:
    """ms of a forward and a backward pass, with the gradient of the maps."""
    maps = maps.detach().requires_grad_()
    start = time.perf_counter()
    with autocast("cpu", precision):  # type: ignore[arg-type]
        output = network(maps)
    output.backward(torch.ones_like(output))
    return (time.perf_counter() - start) * 1e3


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=256, help="images")
    return parser.parse_args()


if __name__ == "__main__":
    main()
