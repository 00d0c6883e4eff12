"""An ONNX file of any origin as a network: frozen, run by onnxruntime. N images, S px their side, C classes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from toolkit import console
from toolkit.architectures import NetworkSettings, OnnxSettings
from toolkit.data.answer_file import LEAST_PROBABILITY
from toolkit.errors import WeightsError, one_line
from toolkit.names import ONNX_SUFFIX
from toolkit.networks.families import Channels, Family
from toolkit.networks.onnx_file import OnnxFile, describe_content
from toolkit.sessions.providers import pick_provider, session_providers
from toolkit.sessions.session import NO_SPINNING, NOTHING, open_session, why_refused

TRIED_IMAGES = 4
SUM_TOLERANCE = 1e-3
"""by how much the sum of an image's probabilities may differ from 1: float16 rounds them"""

Session = Any


class OnnxNetwork(nn.Module):
    """float images (N, 3, S, S), minus mean, divided by std → float32 logits (N, C); no gradient goes through it.

    The buffer `file` holds the bytes of the file, uint8, so that weights files carry it. A file that takes whole
    numbers gets the images times 255, rounded: its mean is 0 and its standard deviation 1. Probabilities become their
    logarithms.
    """

    file: Tensor

    def __init__(self, settings: OnnxSettings, content: bytes = b"") -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("file", torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else _none())
        self._opened: tuple[str, OnnxFile, Session] | None = None

    @property
    def content(self) -> bytes:
        return self.file.cpu().numpy().tobytes()

    def forward(self, images: Tensor) -> Tensor:
        described, session = self.open(str(images.device))
        answers = torch.from_numpy(np.concatenate(self._run(described, session, images.float())))
        answers = answers.to(images.device).flatten(1).float()
        return answers.clamp_min(LEAST_PROBABILITY).log() if self.settings.output == "probabilities" else answers

    def count_parameters(self) -> int:
        """The numbers in its weights."""
        graph = onnx.load_model_from_string(self.content).graph
        return sum(int(np.prod(tensor.dims)) for tensor in graph.initializer if len(tensor.dims) > 0)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: sessions cannot be copied, and are opened again."""
        return {**self.__dict__, "_opened": None}

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._opened = None

    def open(self, device: str) -> tuple[OnnxFile, Session]:
        """What the file says, and its session on a torch device. Raises what onnxruntime raises."""
        if self._opened is None or self._opened[0] != device:
            kind, _, number = device.partition(":")
            provider = pick_provider("cpu" if kind != "cuda" else f"auto:{number or 0}")
            content = self.content
            described = describe_content(content)
            # torch's threads need the cores
            session = open_session(
                content, torch.get_num_threads(), session_providers(provider), NO_SPINNING, log_level=NOTHING
            )
            self._opened = device, described, session
        return self._opened[1:]

    def _run(self, described: OnnxFile, session: Session, images: Tensor) -> list[np.ndarray]:
        """The answers, (N, C) each, of parts of the batch that the file takes."""
        if described.takes_whole_numbers:
            images = images.mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8)
        if self.settings.layout == "nhwc":
            images = images.permute(0, 2, 3, 1)
        pixels = images.cpu().contiguous().numpy().astype(described.element, copy=False)
        name, count = session.get_inputs()[0].name, len(pixels)
        step = described.batch or count
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], -count % step, axis=0)])
        parts = [
            session.run([described.outputs[0]], {name: padded[start : start + step]})[0]
            for start in range(0, count, step)
        ]
        parts[-1] = parts[-1][: count - step * (len(parts) - 1)]
        return parts


def _none() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


class OfOnnx(Family):
    """The family of one name, `onnx`: its network is whatever file is loaded into it."""

    def require(self, architecture: str) -> None:
        """Always there: onnxruntime belongs to the toolkit."""

    def build(
        self, architecture: str, num_classes: int, settings: NetworkSettings, image_size: int | None
    ) -> nn.Module:
        assert isinstance(settings, OnnxSettings)
        return OnnxNetwork(settings)


def is_onnx(path: Path) -> bool:
    return path.suffix.lower() == ONNX_SUFFIX


def import_onnx(
    path: Path, described: OnnxFile, settings: OnnxSettings, image_size: int, normalisation: tuple[Channels, Channels]
) -> tuple[OnnxNetwork, int]:
    """The file as a network that has answered images of `image_size` px, and its C.

    Its settings say by then what its input and its answers are. Raises WeightsError if a setting is missing or
    contradicts the file, and if the file does not answer noise, normalised by `mean` and `std`, with finite numbers.
    """
    layout = _settle_layout(path, described, settings)
    network = OnnxNetwork(settings.model_copy(update={"layout": layout, "output": "logits"}), described.content)
    answers = _try(path, network, image_size, *normalisation)
    if settings.output == "probabilities" or (settings.output == "auto" and _are_probabilities(answers)):
        if bool(((answers < 0) | (answers > 1 + SUM_TOLERANCE)).any()):
            raise WeightsError(
                f"{path}: its answers are no probabilities, some are below 0 or above 1", "use teacher.output=logits"
            )
        network.settings = network.settings.model_copy(update={"output": "probabilities"})
    elif settings.output == "auto" and bool(((answers >= 0) & (answers <= 1)).all()):
        console.say(
            f"warning: {path} answers noise with values of 0 to 1 that do not sum to 1, and they are taken as logits;"
            " if they are probabilities of each class by itself, use --set teacher.output=probabilities"
        )
    return network, answers.shape[1]


def _settle_layout(path: Path, described: OnnxFile, settings: OnnxSettings) -> str:
    stated = settings.layout
    if stated == "auto" and described.layout is None:
        raise WeightsError(
            f"{path} does not say where its input has the colours",
            "give --set teacher.layout=nchw for (N, 3, S, S), or nhwc for (N, S, S, 3)",
        )
    if stated != "auto" and described.layout not in (None, stated):
        raise WeightsError(
            f"{path} takes images as {described.layout}, teacher.layout is {stated}", "leave out teacher.layout"
        )
    if described.takes_whole_numbers and settings.white != 1:
        raise WeightsError(
            f"{path} takes whole numbers of 0..255", "leave out teacher.white, teacher.mean, teacher.std"
        )
    return described.layout or stated


def _try(path: Path, network: OnnxNetwork, image_size: int, mean: Channels, std: Channels) -> Tensor:
    """Its answers to a few images of noise, (N, C)."""
    noise = torch.rand(TRIED_IMAGES, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    images = (noise - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    try:
        network.open(str(images.device))
    except Exception as error:  # onnxruntime has a class of its own for every status code
        raise WeightsError(
            f"{path} cannot be opened: {why_refused(error)}",
            "export it again, with standard operators, for an onnxruntime as old as this one",
        ) from None
    try:
        with torch.no_grad():
            answers: Tensor = network(images)
    except Exception as error:
        reason = why_refused(error) if "onnxruntime" in type(error).__module__ else one_line(error)
        raise WeightsError(
            f"{path} does not answer images of {image_size} px: {reason}",
            "give the size that it was made for: --set teacher.image_size=224",
        ) from None
    if answers.ndim != 2 or len(answers) != TRIED_IMAGES:
        raise WeightsError(
            f"{path} answers {TRIED_IMAGES} images with {tuple(answers.shape)}", "give a file that answers (N, classes)"
        )
    if not bool(answers.isfinite().all()):
        raise WeightsError(f"{path} answers with values that are not finite", "export it again, in float32")
    return answers


def _are_probabilities(answers: Tensor) -> bool:
    return bool((answers >= 0).all() and ((answers.sum(1) - 1).abs() < SUM_TOLERANCE).all())
