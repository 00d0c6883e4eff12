"""End-to-end latency: from an image file's bytes to probabilities, and the time of preprocessing alone.

The method is that of timing.py, with one image at a time. The steps are those of `toolkit predict`: decode, resize and
crop by the model's own preprocess, logits, softmax. Reading the disk is left out: the bytes are in memory.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from toolkit.bench.measure.timing import ROUNDS, Budget, Rounds, Work, percentiles, time_in_turns
from toolkit.bench.schema import Duration
from toolkit.data.dataset import Images
from toolkit.data.picture_file import PictureStream, open_bytes
from toolkit.data.preprocess import Preprocess
from toolkit.runtimes.base import Predictor, softmax


@dataclass(frozen=True)
class EndToEnd:
    """One image, in memory as a file's bytes."""

    preprocess_ms: Duration
    """Decode, resize and crop."""
    end_to_end_ms: list[Duration]
    """The same with the network and the softmax, for each predictor."""


def encode_images(images: Images, names: Sequence[str]) -> list[bytes]:
    """The files' own bytes of the images of those names; images that are arrays are encoded as PNG."""
    places = {name: i for i, name in enumerate(images.names)}
    return [_encode(images.read(places[name])) for name in names]


def time_end_to_end(
    preprocess: Preprocess,
    predictors: Sequence[Predictor],
    contents: Sequence[bytes],
    budget: Budget,
    advance: Callable[[int], None] = lambda steps: None,
) -> EndToEnd:
    """Time preprocessing and every predictor's whole answer in turns, one file of `contents` after the other.

    `advance` is called with 1 after each turn, `count_turns` times in all.
    """
    works = [
        Work(_choose(contents), lambda content: prepare_image(content, preprocess)),
        *(Work(_choose(contents), _answer_with(predictor)) for predictor in predictors),
    ]
    preprocessing, *answers = time_in_turns(works, budget, advance)
    return EndToEnd(_describe_duration(preprocessing), [_describe_duration(rounds) for rounds in answers])


def count_turns(predictors: int) -> int:
    """How often `time_end_to_end` calls advance."""
    return ROUNDS * (1 + predictors)


def prepare_image(content: bytes, preprocess: Preprocess) -> np.ndarray:
    """An image file's bytes → uint8 (S, S, 3)."""
    return preprocess(open_bytes(content))


def _describe_duration(rounds: Rounds) -> Duration:
    durations_ms = np.concatenate(rounds) / 1e6
    p50, p95 = percentiles(durations_ms, 50, 95)
    return Duration(p50=p50, p95=p95, n=len(durations_ms))


def _answer_with(predictor: Predictor) -> Callable[[bytes], np.ndarray]:
    return lambda content: softmax(predictor.logits(prepare_image(content, predictor.preprocess)[np.newaxis]))


def _choose(contents: Sequence[bytes]) -> Callable[[int], bytes]:
    return lambda number: contents[number % len(contents)]


def _encode(image: Image.Image) -> bytes:
    # a file is still open, because Pillow decodes it only when its pixels are asked for
    source = image.fp if isinstance(image, ImageFile.ImageFile) else None
    if isinstance(source, PictureStream):
        return source.content()
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
