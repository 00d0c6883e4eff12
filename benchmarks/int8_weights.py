"""The cost of int8 weights of 7 bits, and of those of 8 bits on a CPU without VNNI.

    python benchmarks/int8_weights.py models/fashion-mnist/student.safetensors

quantizes the network of a weights file twice and compares both graphs with the fp32 one, on test images of the data set
that it was trained on: mean total variation distance of the probabilities, answers and accuracy, each with the
products that onnxruntime chooses on this CPU and with exact ones (`session.x64quantprecision`); then times all three.
Prints JSON. On a CPU with VNNI, see the other kind with

    cc -O1 -shared -fPIC -o without_avx512.so tests/without_avx512.c -ldl
    LD_PRELOAD=./without_avx512.so python benchmarks/int8_weights.py ...
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from toolkit.data.dataset import spread
from toolkit.data.pixels import Pixels, load_pixels
from toolkit.data.sources import load_dataset
from toolkit.graphs import quantize
from toolkit.graphs.build import build_graph
from toolkit.machine.limits import available_cores
from toolkit.networks.weights import load_model
from toolkit.recipe import Recipe
from toolkit.runtimes.base import softmax
from toolkit.sessions.session import NO_SPINNING, open_session

BATCH = 256


def main() -> None:
    options = _parse()
    classifier, info = load_model(options.weights)
    recipe = Recipe.from_dict(info.recipe, str(options.weights))
    dataset = load_dataset(recipe.data)
    train, test = (load_pixels(dataset, split, info.preprocess) for split in ("train", "test"))
    chosen = spread(len(test), options.images)
    calibration = train.centre(spread(len(train), recipe.export.calibration_images))
    fp32 = build_graph(classifier, info.preprocess.image_size, recipe.export.opset)
    graphs = {"fp32": fp32, "7 bits": _quantize(fp32, calibration, 7), "8 bits": _quantize(fp32, calibration, 8)}
    result = {
        "images": len(chosen),
        **_compare(graphs, test, chosen),
        "ms_a_batch": _time(graphs, test, options.rounds),
    }
    print(json.dumps(result, indent=1))


def _quantize(model: onnx.ModelProto, images: NDArray[np.uint8], bits: int) -> onnx.ModelProto:
    quantize.REDUCE_RANGE = bits == 7
    with quantize.Quantizer(model, images, "minmax") as quantizer:
        return quantizer.quantize()


def _compare(graphs: dict[str, onnx.ModelProto], test: Pixels, chosen: NDArray[np.int64]) -> dict[str, Any]:
    labels = test.labels[chosen]
    expected = _answer(graphs["fp32"], test, chosen, exact=False)
    result: dict[str, Any] = {"fp32": {"accuracy": float((expected.argmax(1) == labels).mean())}}
    for name in ("7 bits", "8 bits"):
        for exact in (False, True):
            logits = _answer(graphs[name], test, chosen, exact=exact)
            result[f"{name}, {'exact' if exact else 'own'} products"] = {
                "distance": float(np.abs(softmax(logits) - softmax(expected)).sum(1).mean() / 2),
                "same_answer": float((logits.argmax(1) == expected.argmax(1)).mean()),
                "accuracy": float((logits.argmax(1) == labels).mean()),
            }
    return result


def _answer(model: onnx.ModelProto, test: Pixels, chosen: NDArray[np.int64], *, exact: bool) -> NDArray[np.float32]:
    session = _open(model, exact=exact)
    parts = np.array_split(chosen, max(1, len(chosen) // BATCH))
    return np.concatenate([session.run(["logits"], {"image": test.centre(part)})[0] for part in parts])


def _time(graphs: dict[str, onnx.ModelProto], test: Pixels, rounds: int) -> dict[str, float]:
    """Least of some rounds in turns, ms for a batch of 256 test images, or of all if there are fewer."""
    images = test.centre(spread(len(test), BATCH))
    sessions = {name: _open(model, exact=False) for name, model in graphs.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(["logits"], {"image": images})
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: min(measured) for name, measured in times.items()}


def _open(model: onnx.ModelProto, *, exact: bool) -> Any:
    settings = {"session.x64quantprecision": str(int(exact)), **NO_SPINNING}  # three sessions take turns
    return open_session(model.SerializeToString(), available_cores(), settings=settings)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a .safetensors file that toolkit wrote")
    parser.add_argument("--images", type=int, default=2000, help="test images, at most")
    parser.add_argument("--rounds", type=int, default=10, help="of the timing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
