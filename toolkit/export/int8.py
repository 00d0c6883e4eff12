"""An int8 graph within the allowed loss of accuracy: the whole graph, or all but its most harmful layers.

N images, C classes.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from toolkit import console
from toolkit.errors import GateError
from toolkit.export.samples import read_batches
from toolkit.export.verify import ROUNDING, Reference
from toolkit.graphs.layers import name_layer
from toolkit.graphs.quantize import Quantizer
from toolkit.machine.limits import available_cores
from toolkit.runtimes.base import softmax
from toolkit.sessions.session import open_session
from toolkit.settings import ExportRecipe

TURNS, RUNS, UNTIMED, PAUSE_S = 4, 15, 5, 0.1
"""of the speed comparison: turns, runs of one image in each, those of them that warm up, s before a turn"""


@dataclass(frozen=True)
class Int8Graph:
    """An int8 graph, and the layers that stayed float32, by their names in the network, the most harmful first."""

    model: onnx.ModelProto
    float_layers: tuple[str, ...]


def quantize_within(
    model: onnx.ModelProto,
    calibration_images: NDArray[np.uint8],
    reference: Reference,
    recipe: ExportRecipe,
    title: str,
) -> Int8Graph:
    """The int8 version of the float32 `model` that loses at most `recipe.max_drop` accuracy on the reference's images.

    If the whole graph loses more, layers are ranked by the harm that each does alone, and as few of the worst as
    possible stay float32. `reference` holds the float32 file's logits (N, C) for images with labels. Raises GateError
    if even the one least harmful layer is too much.
    """
    with Quantizer(model, calibration_images, recipe.calibration) as quantizer:
        search = _Search(quantizer, reference, recipe.max_drop)
        whole = quantizer.quantize()
        drop = search.drop(whole)
        if drop <= recipe.max_drop + ROUNDING:
            return Int8Graph(whole, ())
        console.say(
            f"{title}: in int8 throughout it loses {drop:.4f} accuracy, {recipe.max_drop:g} is allowed"
            " (export.max_drop): looking for the most harmful layers"
        )
        ranked = search.rank()
        found = search.fewest(ranked)
        if found is None:
            raise GateError(
                f"{title} cannot keep its accuracy: in int8 throughout it loses {drop:.4f} on {len(reference.samples)}"
                f" validation images, with all layers but {name_layer(model.graph, ranked[-1])} in float32 still"
                f" {search.last_drop:.4f}; {recipe.max_drop:g} is allowed (export.max_drop)",
                "nothing was kept; try export.calibration=entropy or percentile, more"
                " export.calibration_images, a larger export.max_drop, or leave out --int8",
            )
        count, best = found
        return Int8Graph(best, tuple(name_layer(model.graph, layer) for layer in ranked[:count]))


class _Search:
    def __init__(self, quantizer: Quantizer, reference: Reference, max_drop: float) -> None:
        self._quantizer, self._samples, self._max_drop = quantizer, reference.samples, max_drop
        self._reference = reference.logits
        assert reference.samples.labels is not None
        self._labels = reference.samples.labels
        self._accuracy = float((reference.logits.argmax(1) == self._labels).mean())
        self.last_drop = 0.0
        """of the graph that was tried last"""

    def drop(self, model: onnx.ModelProto) -> float:
        """Accuracy that the graph loses."""
        self.last_drop = self._accuracy - float((self._logits(model).argmax(1) == self._labels).mean())
        return self.last_drop

    def rank(self) -> list[str]:
        """Layers by the harm that each does if only it is int8, the most harmful first.

        Harm is the mean total variation distance of the probabilities: it distinguishes layers long before a class
        changes.
        """
        layers = self._quantizer.layers
        wanted = softmax(self._reference)
        harms = {}
        with console.progress("int8: layers", len(layers)) as advance:
            for layer in layers:
                alone = self._quantizer.quantize([other for other in layers if other != layer])
                harms[layer] = float(np.abs(softmax(self._logits(alone)) - wanted).sum(1).mean() / 2)
                advance(1)
        return sorted(layers, key=lambda layer: -harms[layer])

    def fewest(self, ranked: list[str]) -> tuple[int, onnx.ModelProto] | None:
        """The least number of layers from the front of `ranked` that must stay float, and the graph; by bisection."""
        low, high = 1, len(ranked) - 1
        if high < low or (best := self._passing(ranked[:high])) is None:
            return None
        while low < high:
            middle = (low + high) // 2
            if better := self._passing(ranked[:middle]):
                best, high = better, middle
            else:
                low = middle + 1
        return high, best

    def _passing(self, keep_float: list[str]) -> onnx.ModelProto | None:
        model = self._quantizer.quantize(keep_float)
        return model if self.drop(model) <= self._max_drop + ROUNDING else None

    def _logits(self, model: onnx.ModelProto) -> NDArray[np.float32]:
        session = open_session(model.SerializeToString(), available_cores())
        return np.concatenate([session.run(["logits"], {"image": images})[0] for images in read_batches(self._samples)])


def times_faster(path: Path, other: Path, images: NDArray[np.uint8]) -> float:
    """How many times faster the file answers than the other, one image (of N, S, S, 3) at a time, on this CPU.

    It is the ratio of medians over turns. A pause precedes each turn: the other's threads spin for some 50 ms more.
    """
    sessions = [open_session(file, available_cores()) for file in (path, other)]
    times: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for session, measured in zip(sessions, times, strict=True):
            time.sleep(PAUSE_S)
            for run in range(RUNS):
                image = images[run % len(images)][np.newaxis]
                start = time.perf_counter()
                session.run(["logits"], {"image": image})
                if run >= UNTIMED:
                    measured.append(time.perf_counter() - start)
    return float(np.median(times[1]) / np.median(times[0]))
