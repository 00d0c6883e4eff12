"""Distillation from intermediate layers: losses of feature maps, and taps that read them off a network.

N images, D channels, H W pixels of a feature map, L tokens, S pixels of an image's side. The losses are pure functions,
computed in float32 or wider, each a scalar ≥ 0.
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.distill.losses import at_least_float32, unit_vectors
from toolkit.errors import RecipeError, did_you_mean
from toolkit.networks.classifier import Classifier

CHANNEL_AXIS = {2: 1, 3: 2, 4: 1}  # of (N, D), (N, L, D), (N, D, H, W)

REMEDY = "name layers of one kind in distill.teacher_taps and distill.student_taps; similarity compares any two"


def fitnets_term(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """½·mean((student − teacher)²) over all elements; both of one shape, (N, D, H, W) or any other.

    Romero et al. 2015, "FitNets: Hints for Thin Deep Nets" (arXiv:1412.6550), equation 3 with a mean in place of its
    sum, so that layers of any size weigh alike; its regressor is TappedNetwork's projector.
    """
    if student_features.shape != teacher_features.shape:
        raise _not_comparable("fitnets compares layers of one shape", student_features, teacher_features)
    return 0.5 * F.mse_loss(at_least_float32(student_features), at_least_float32(teacher_features))


def attention_term(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """mean((Q_student − Q_teacher)²); Q is an image's attention map as a vector of H·W values and length 1.

    Zagoruyko & Komodakis 2017, "Paying More Attention to Attention" (arXiv:1612.03928), equation 2; an attention map
    is the mean over channels of the squared features. Mean over images and pixels of the squared difference, as in the
    authors' code, in place of the paper's norm of it. Features are (N, D, H, W) of equal N, H, W; D may differ. Range
    0 to 2/(H·W). An all-zero map has attention 0, with gradient 0.
    """
    shapes = (student_features.shape, teacher_features.shape)
    if any(len(shape) != 4 for shape in shapes) or shapes[0][2:] != shapes[1][2:]:
        raise _not_comparable("attention compares maps (N, D, H, W) of one size", student_features, teacher_features)
    student, teacher = (
        unit_vectors(at_least_float32(features).square().mean(dim=1).flatten(1), dim=1)
        for features in (student_features, teacher_features)
    )
    return F.mse_loss(student, teacher)


def similarity_term(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """‖G_student − G_teacher‖² / N²; G is the images' Gram matrix (N, N) with rows of length 1.

    Tung & Mori 2019, "Similarity-Preserving Knowledge Distillation" (arXiv:1907.09682), equation 4. Features are
    (N, ...) of any two shapes. Range 0 to 4/N. An all-zero image has similarities 0, with gradient 0.
    """
    difference = _similarities(student_features) - _similarities(teacher_features)
    return difference.square().sum() / len(difference) ** 2


def match_spatial(student_features: Tensor, teacher_features: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (N, D, H, W) at the smaller H and the smaller W, by adaptive average pooling; others as they are."""
    if student_features.ndim != 4 or teacher_features.ndim != 4:
        return student_features, teacher_features
    height, width = (min(pair) for pair in zip(student_features.shape[2:], teacher_features.shape[2:], strict=True))
    student, teacher = (
        features if features.shape[2:] == (height, width) else F.adaptive_avg_pool2d(features, (height, width))
        for features in (student_features, teacher_features)
    )
    return student, teacher


class Taps:
    """Reads the outputs of named submodules as a network runs: forward, then `take`. Ends with `close`.

    An output is copied as it comes out, because later layers may work in place. If a submodule runs more than once, its
    last output counts. Raises RecipeError, which begins with `setting`, for a name that the network does not have
    and, in the forward pass, for an output that is not a tensor of 2 to 4 dimensions.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], *, setting: str) -> None:
        layers = _named_layers(network)
        for name in names:
            if name not in layers:
                raise _unknown_layer(name, list(layers), setting)
        self._names, self._setting = tuple(names), setting
        self._outputs: dict[str, Tensor] = {}
        # A bound method, unlike a closure, is copied along with a network: the copy's hooks fill the copy's taps.
        self._handles = [layers[name].register_forward_hook(functools.partial(self._keep, name)) for name in names]

    def take(self) -> tuple[Tensor, ...]:
        """The latest outputs in the order of the names, which are then forgotten; RecipeError if one is missing."""
        outputs, self._outputs = self._outputs, {}
        for name in self._names:
            if name not in outputs:
                problem = f"{self._setting}: the layer {name} has not run"
                raise RecipeError(problem, "name one that every image goes through")
        return tuple(outputs[name] for name in self._names)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._outputs = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state that copies get. Outputs are left out, because outputs with a gradient cannot be copied."""
        return self.__dict__ | {"_outputs": {}}

    def _keep(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        if not isinstance(output, Tensor) or not 2 <= output.ndim <= 4:
            what = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            problem = f"{self._setting}: the layer {name} gives {what}, not a tensor of 2 to 4 dimensions"
            raise RecipeError(problem, "name a layer before or after it")
        self._outputs[name] = output.clone()


class TappedNetwork(nn.Module):
    """images (N, 3, H, W) in 0..1 → the classifier's logits (N, C), and the features of its layers `names`.

    With `project_to`, the channels of the teacher's taps, features go through projectors, which are trained too: 1×1
    convolutions for (N, D, H, W), linear layers otherwise, without bias, and nothing if widths are equal. Widths are
    found with one image of `image_size` px. Hooks sit on modules: replace those before. Raises RecipeError as Taps
    does.
    """

    def __init__(
        self,
        classifier: Classifier,
        names: Sequence[str] = (),
        *,
        setting: str = "taps",
        project_to: Sequence[int] | None = None,
        image_size: int = 224,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.projectors = nn.ModuleList(nn.Identity() for _ in names)
        if project_to is not None:
            shapes = _tap_shapes(classifier.network, names, image_size, setting)
            self.projectors = nn.ModuleList(map(_make_projector, shapes, project_to))
        self.taps = Taps(classifier.network, names, setting=setting)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        logits: Tensor = self.classifier(images)
        return logits, tuple(project(part) for project, part in zip(self.projectors, self.taps.take(), strict=True))


def tap_channels(network: nn.Module, names: Sequence[str], image_size: int, *, setting: str = "taps") -> list[int]:
    """D of each named layer's output, for images of `image_size` px; raises RecipeError as Taps does."""
    return [shape[CHANNEL_AXIS[len(shape)]] for shape in _tap_shapes(network, names, image_size, setting)]


def default_tap(network: nn.Module, image_size: int) -> str:
    """The last layer whose output is a map (1, D, H, W) with H·W > 1, or of any size if there is none; S = image_size.

    If modules are nested, it is the outermost one. A block is a module whose output is a map, but no nn.Sequential;
    layers inside a block count only if no other layer has a map. Maps are square, like the image, so (N, H, W, D) is
    not a map. Adaptive pooling does not count, because it can enlarge a map. Raises RecipeError if there is no such
    layer, or if tokens (N, L, D) follow it (ViT).
    """
    shapes = _output_shapes(network, image_size)
    maps = [name for name, shape in shapes.items() if len(shape) == 4 and shape[2] == shape[3]]
    blocks = tuple(f"{name}." for name in maps if type(network.get_submodule(name)) is not nn.Sequential)
    large = [name for name in maps if shapes[name][2] > 1]
    best = [name for name in large if not name.startswith(blocks)] or large or maps
    if not best or any(len(shape) == 3 for shape in list(shapes.values())[list(shapes).index(best[-1]) :]):
        problem = f"{type(network).__name__} does not end in feature maps (N, D, H, W), so none is tapped by default"
        raise RecipeError(problem, REMEDY)
    return best[-1]


def _output_shapes(network: nn.Module, image_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the layers' tensors by name, in the order in which the layers ended their (last) run."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        shapes.pop(name, None)
        if isinstance(output, Tensor) and not isinstance(module, nn.AdaptiveAvgPool2d):
            shapes[name] = tuple(output.shape)

    with contextlib.ExitStack() as hooks:
        for name, module in _named_layers(network).items():
            hooks.enter_context(module.register_forward_hook(functools.partial(note, name)))
        _run_once(network, image_size)
    return shapes


def _similarities(features: Tensor) -> Tensor:
    flat = at_least_float32(features).flatten(1)
    with torch.autocast(flat.device.type, enabled=False):
        return unit_vectors(flat @ flat.T, dim=1)


def _tap_shapes(network: nn.Module, names: Sequence[str], image_size: int, setting: str) -> list[tuple[int, ...]]:
    with contextlib.closing(Taps(network, names, setting=setting)) as taps:
        _run_once(network, image_size)
        return [tuple(features.shape) for features in taps.take()]


def _named_layers(network: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in network.named_modules(remove_duplicate=False) if name}


def _run_once(network: nn.Module, image_size: int) -> None:
    """Run one black image in evaluation mode; afterwards every submodule is in its own mode again, frozen ones too."""
    parameter = next(network.parameters(), torch.empty(0))
    images = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            network.eval()(images)
    finally:
        for module, training in modes:
            module.training = training


def _make_projector(shape: tuple[int, ...], channels: int) -> nn.Module:
    if (width := shape[CHANNEL_AXIS[len(shape)]]) == channels:
        return nn.Identity()
    return nn.Conv2d(width, channels, 1, bias=False) if len(shape) == 4 else nn.Linear(width, channels, bias=False)


def _unknown_layer(name: str, known: list[str], setting: str) -> RecipeError:
    outer = ", ".join(layer for layer in known if layer.count(".") < 2)
    remedy = did_you_mean(name, known, at_most=3).rstrip() or f"its layers, to a depth of 2: {outer}"
    return RecipeError(f"{setting}: there is no layer {name!r}", remedy)


def _not_comparable(need: str, student_features: Tensor, teacher_features: Tensor) -> RecipeError:
    shapes = f"the student's tap gives {tuple(student_features.shape)}, the teacher's {tuple(teacher_features.shape)}"
    return RecipeError(f"{need}: {shapes}", REMEDY)
