"""Losses of feature maps against float64 written out in numpy; taps on networks, and students that learn from them."""

import copy
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50, vgg11, vit_b_16

from toolkit.distill.features import (
    TappedNetwork,
    Taps,
    attention_term,
    default_tap,
    fitnets_term,
    match_spatial,
    similarity_term,
    tap_channels,
)
from toolkit.distill.objective import FEATURE_METHODS
from toolkit.errors import RecipeError
from toolkit.networks.classifier import Classifier
from toolkit.networks.depthwise import DepthwiseStudent

METHODS = ("fitnets", "attention", "similarity")
SIZE = 32


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numpy_fitnets(student: torch.Tensor, teacher: torch.Tensor) -> float:
    return float(0.5 * np.mean((student.numpy() - teacher.numpy()) ** 2))


def numpy_attention(student: torch.Tensor, teacher: torch.Tensor) -> float:
    total = 0.0
    for images in zip(student.numpy(), teacher.numpy(), strict=True):
        ours, theirs = (np.mean(image**2, axis=0).ravel() for image in images)
        total += np.mean((ours / np.sqrt(ours @ ours) - theirs / np.sqrt(theirs @ theirs)) ** 2)
    return float(total / len(student))


def numpy_similarity(student: torch.Tensor, teacher: torch.Tensor) -> float:
    grams = []
    for part in (student.numpy(), teacher.numpy()):
        gram = np.array([[np.sum(a * b) for b in part] for a in part])
        grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    return float(np.linalg.norm(grams[0] - grams[1], "fro") ** 2 / len(student) ** 2)


Term = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
TERMS: dict[str, Term] = {"fitnets": fitnets_term, "attention": attention_term, "similarity": similarity_term}
over_terms = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


def test_fitnets_equals_the_float64_reference() -> None:
    student, teacher = features(0, 3, 4, 2, 5), features(1, 3, 4, 2, 5)
    assert fitnets_term(student, teacher).item() == pytest.approx(numpy_fitnets(student, teacher), rel=1e-12)


def test_attention_equals_the_float64_reference_for_unequal_channels() -> None:
    student, teacher = features(2, 3, 4, 2, 5), features(3, 3, 7, 2, 5)
    assert attention_term(student, teacher).item() == pytest.approx(numpy_attention(student, teacher), rel=1e-12)


@pytest.mark.parametrize("shape", [(5, 7, 3, 2), (5, 6, 7), (5, 9)])
def test_similarity_equals_the_float64_reference_for_unequal_shapes(shape: tuple[int, ...]) -> None:
    student, teacher = features(4, 5, 4, 2, 5), features(5, *shape)
    assert similarity_term(student, teacher).item() == pytest.approx(numpy_similarity(student, teacher), rel=1e-12)


def test_similarity_by_a_hand_worked_case() -> None:
    """Two images alike for the student and at a right angle for the teacher: rows (1, 1)/√2 against rows of I."""
    alike, apart = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)
    expected = 2 * ((1 - 0.5**0.5) ** 2 + 0.5) / 4
    assert similarity_term(alike, apart).item() == pytest.approx(expected)


@over_terms
def test_a_term_is_0_if_student_equals_teacher(term: Term) -> None:
    same = features(6, 3, 4, 2, 5)
    assert term(same, same.clone()).item() == 0


@pytest.mark.parametrize("term", [attention_term, similarity_term])
def test_the_scale_of_the_features_does_not_matter_to_attention_and_similarity(term: Term) -> None:
    student, teacher = features(7, 3, 4, 2, 5), features(8, 3, 4, 2, 5)
    torch.testing.assert_close(term(9 * student, 0.1 * teacher), term(student, teacher))
    assert term(student, teacher).item() > 0


@over_terms
def test_gradient_of_a_term_equals_the_numerical_one(term: Term) -> None:
    student, teacher = features(9, 3, 4, 2, 2).requires_grad_(), features(10, 3, 4, 2, 2)
    assert torch.autograd.gradcheck(lambda s: term(s, teacher), (student,), eps=1e-6, atol=1e-8)


@over_terms
@pytest.mark.parametrize("images", [slice(0, 1), slice(None)], ids=["one", "all"])
def test_a_term_and_its_gradient_are_finite_for_all_zero_maps(term: Term, images: slice) -> None:
    student, teacher = features(11, 3, 4, 2, 2).float(), features(12, 3, 4, 2, 2).float()
    student[images] = 0
    student.requires_grad_()
    loss = term(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.abs().max() < 10


@over_terms
@pytest.mark.parametrize("autocast", [False, True])
def test_a_term_of_bfloat16_features_is_computed_in_float32(term: Term, autocast: bool) -> None:
    student, teacher = features(13, 4, 4, 3, 3).bfloat16(), features(14, 4, 4, 3, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = term(student, teacher)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, term(student.double(), teacher.double()).float(), rtol=1e-5, atol=1e-7)


def test_match_spatial_pools_each_axis_of_the_larger_map() -> None:
    student, teacher = features(15, 2, 3, 4, 2), features(16, 2, 5, 2, 6)
    ours, theirs = match_spatial(student, teacher)
    torch.testing.assert_close(ours, student.view(2, 3, 2, 2, 2).mean(3))
    torch.testing.assert_close(theirs, teacher.view(2, 5, 2, 2, 3).mean(4))


def test_match_spatial_leaves_equal_maps_and_vectors_alone() -> None:
    for student, teacher in (
        (features(17, 2, 3, 4, 2), features(18, 2, 5, 4, 2)),
        (features(17, 2, 3), features(18, 2, 5, 4, 2)),
    ):
        ours, theirs = match_spatial(student, teacher)
        assert ours is student
        assert theirs is teacher


@pytest.mark.parametrize("method", METHODS)
def test_a_method_sums_over_pairs_of_any_size(method: str) -> None:
    students = [features(19, 3, 4, 4, 4), features(20, 3, 6, 1, 1)]
    teachers = [features(21, 3, 4, 2, 2), features(22, 3, 6, 2, 2)]
    pairs = zip(students, teachers, strict=True)
    if method != "similarity":
        pairs = (match_spatial(*pair) for pair in pairs)
    expected = sum(TERMS[method](*pair) for pair in pairs)
    torch.testing.assert_close(FEATURE_METHODS[method](students, teachers), expected)
    assert FEATURE_METHODS[method]([s.bfloat16() for s in students], teachers).dtype.itemsize >= 4


def test_fitnets_of_unequal_shapes_says_what_to_name() -> None:
    with pytest.raises(RecipeError) as error:
        FEATURE_METHODS["fitnets"]([features(23, 2, 4, 3, 3)], [features(24, 2, 9)])
    assert str(error.value) == (
        "fitnets compares layers of one shape: the student's tap gives (2, 4, 3, 3), the teacher's (2, 9); "
        "name layers of one kind in distill.teacher_taps and distill.student_taps; similarity compares any two"
    )


def test_attention_of_vectors_and_of_unequal_sizes_says_what_to_name() -> None:
    maps = features(25, 2, 4, 3, 3)
    for other in (features(26, 2, 9), features(26, 2, 4, 1, 1)):
        with pytest.raises(RecipeError, match=r"attention compares maps \(N, D, H, W\) of one size: .*similarity"):
            attention_term(maps, other)


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return nn.Sequential(*layers)


def test_taps_give_outputs_in_the_order_of_names_and_forget_them() -> None:
    network, images = small_network(), torch.rand(2, 3, 8, 8)
    taps = Taps(network, ("4", "0"), setting="distill.student_taps")
    logits = network(images)
    vector, convolved = taps.take()
    torch.testing.assert_close(vector, logits)
    torch.testing.assert_close(convolved, network[0](images))  # not what the ReLU made of it in place
    with pytest.raises(RecipeError, match=r"distill\.student_taps: the layer 4 has not run"):
        taps.take()


def test_gradient_flows_through_a_tap() -> None:
    network = small_network()
    taps = Taps(network, ("1",), setting="taps")
    network(torch.rand(2, 3, 8, 8))
    taps.take()[0].sum().backward()
    assert network[0].weight.grad is not None
    assert network[4].weight.grad is None


def test_closed_taps_leave_no_hooks() -> None:
    network = small_network()
    taps = Taps(network, ("0", "1"), setting="taps")
    assert sum(len(module._forward_hooks) for module in network.modules()) == 2
    taps.close()
    assert not any(module._forward_hooks for module in network.modules())


def test_unknown_layer_is_reported_with_its_near_matches() -> None:
    with pytest.raises(RecipeError) as error:
        Taps(resnet18(num_classes=2), ("layer3", "layr4"), setting="distill.teacher_taps")
    message = str(error.value)
    assert message.startswith("distill.teacher_taps: there is no layer 'layr4'; did you mean layer4 or ")
    assert "\n" not in message


def test_unknown_layer_without_near_match_is_reported_with_all_layers() -> None:
    network = nn.Sequential(small_network(), nn.Softmax(1))
    with pytest.raises(RecipeError) as error:
        Taps(network, ("backbone",), setting="distill.student_taps")
    assert str(error.value) == (
        "distill.student_taps: there is no layer 'backbone'; its layers, to a depth of 2: 0, 0.0, 0.1, 0.2, 0.3, 0.4, 1"
    )


class Awkward(nn.Module):
    """A tuple, a vector without images and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.flat, self.idle = nn.MaxPool2d(2, return_indices=True), nn.Flatten(0), nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.flat(self.pair(images)[0]).view(len(images), -1)


@pytest.mark.parametrize(("name", "what"), [("pair", "a tuple"), ("flat", r"a tensor \(12,\)")])
def test_output_that_is_no_feature_is_refused(name: str, what: str) -> None:
    network = Awkward()
    Taps(network, (name,), setting="distill.teacher_taps")
    expected = rf"distill\.teacher_taps: the layer {name} gives {what}, not a tensor of 2 to 4 dimensions; name a layer"
    with pytest.raises(RecipeError, match=expected):
        network(torch.zeros(1, 3, 4, 4))


def test_layer_that_does_not_run_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^taps: the layer idle has not run; name one that every image goes through"):
        tap_channels(Awkward(), ("idle",), 4)


class Residual(nn.Module):
    """A block that halves its map at its end, as ResNet-50's do in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.convolve, self.shrink = nn.Conv2d(4, 4, 1), nn.MaxPool2d(2)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.shrink(self.convolve(maps))


@pytest.mark.parametrize(
    ("make", "size", "expected"),
    [
        (resnet18, 64, "layer4"),
        (resnet18, SIZE, "layer3"),
        (resnet50, SIZE, "layer3"),
        (vgg11, SIZE, "features.19"),
        (DepthwiseStudent, SIZE, "cnn.7"),
        (functools.partial(DepthwiseStudent, base=2), 64, "cnn.7"),
        (lambda num_classes: nn.Sequential(nn.Conv2d(3, num_classes, 8), nn.AdaptiveAvgPool2d(1)), 8, "0"),
        (lambda num_classes: nn.Sequential(nn.Conv2d(3, 4, 3, 2), Residual()), 6, "0"),
    ],
    ids=["resnet18-64", "resnet18-32", "resnet50-32", "vgg11-32", "depthwise-32", "depthwise-64", "1x1", "block"],
)
def test_default_tap_is_the_last_map_outside_blocks(make: Callable[..., nn.Module], size: int, expected: str) -> None:
    with torch.device("meta"):  # shapes alone: no weights, no arithmetic
        network = make(num_classes=5)
    network.train()
    assert default_tap(network, size) == expected
    assert not any(module._forward_hooks for module in network.modules())


def test_network_without_maps_at_its_end_has_no_default_tap() -> None:
    with torch.device("meta"):
        transformer = vit_b_16(image_size=SIZE, num_classes=2)
    for network in (transformer, nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 2))):
        with pytest.raises(RecipeError) as error:
            default_tap(network, SIZE)
        assert str(error.value) == (
            f"{type(network).__name__} does not end in feature maps (N, D, H, W), so none is tapped by default; "
            "name layers of one kind in distill.teacher_taps and distill.student_taps; similarity compares any two"
        )


def test_looking_for_taps_does_not_change_modes_or_statistics() -> None:
    student = DepthwiseStudent(2, base=1).train()
    student.cnn[0].eval()
    before = copy.deepcopy(student.state_dict())
    modes = [module.training for module in student.modules()]
    default_tap(student, SIZE)
    tap_channels(student, ("cnn.7",), SIZE)
    assert [module.training for module in student.modules()] == modes
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_tap_channels_of_maps_tokens_and_vectors() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(2), nn.Linear(16, 7), nn.Flatten(), nn.Linear(35, 9))
    assert tap_channels(network, ("0", "2", "4"), 4) == [5, 7, 9]


def tapped(network: nn.Module, names: tuple[str, ...], project_to: list[int] | None = None) -> TappedNetwork:
    classifier = Classifier(network, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    return TappedNetwork(classifier, names, setting="taps", project_to=project_to, image_size=SIZE)


def test_tapped_network_gives_the_classifier_s_logits_and_features() -> None:
    network = tapped(small_network(), ("0", "4"))
    images = torch.rand(2, 3, 8, 8)
    logits, (convolved, vector) = network(images)
    torch.testing.assert_close(logits, network.classifier(images))
    torch.testing.assert_close(vector, logits)
    assert convolved.shape == (2, 4, 6, 6)
    assert tapped(small_network(), ())(images)[1] == ()


def test_projectors_bring_features_to_the_teacher_s_width() -> None:
    layers = (nn.Conv2d(3, 5, 8, 8), nn.Flatten(2), nn.Linear(16, 7), nn.Flatten(), nn.Linear(35, 2))
    network = tapped(nn.Sequential(*layers), ("0", "0", "2", "4"), project_to=[5, 6, 8, 3])
    _, projected = network(torch.rand(2, 3, SIZE, SIZE))
    assert [tuple(part.shape) for part in projected] == [(2, 5, 4, 4), (2, 6, 4, 4), (2, 5, 8), (2, 3)]
    kinds = [type(projector) for projector in network.projectors]
    assert kinds == [nn.Identity, nn.Conv2d, nn.Linear, nn.Linear]
    assert sum(weight.numel() for weight in network.projectors.parameters()) == 5 * 6 + 7 * 8 + 2 * 3


def test_hooks_stay_out_of_state_dicts_and_copies_are_independent() -> None:
    network = tapped(small_network(), ("0",), project_to=[6])
    images = torch.rand(2, 3, 8, 8)
    network.classifier(images)  # leaves an output with a gradient behind, which cannot be copied
    twin = copy.deepcopy(network)
    assert list(network.classifier.network.state_dict()) == list(small_network().state_dict())
    assert [name for name in network.state_dict() if not name.startswith("classifier.")] == ["projectors.0.weight"]
    torch.testing.assert_close(twin(images), network(images))
    nn.init.zeros_(twin.classifier.network[0].weight)
    nn.init.zeros_(twin.classifier.network[0].bias)
    assert twin(images)[1][0].eq(0).all()
    assert network(images)[1][0].ne(0).any()
    twin.taps.close()
    assert network(images)[1][0].shape == (2, 6, 6, 6)
    assert copy.deepcopy(network.classifier.network)(network.classifier.mean.expand(1, 3, 8, 8)).shape == (1, 2)


def test_tapped_network_is_compiled_in_one_graph() -> None:
    network = tapped(small_network(), ("0", "4"), project_to=[6, 2])
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for seed in (0, 1):
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(compiled(images), network(images))


def test_tapped_network_names_the_setting_of_an_unknown_layer() -> None:
    classifier = Classifier(small_network(), (0.5,) * 3, (0.2,) * 3)
    for project_to in (None, [3]):
        with pytest.raises(RecipeError, match=r"distill\.student_taps: there is no layer 'cnn\.7'"):
            TappedNetwork(classifier, ("cnn.7",), setting="distill.student_taps", project_to=project_to)


@pytest.fixture(scope="module")
def teacher_features() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """A fixed batch, and a ResNet-18's features of it at its default tap."""
    torch.manual_seed(0)
    images, network = torch.rand(8, 3, SIZE, SIZE), resnet18(num_classes=4)
    teacher = tapped(network, (default_tap(network, SIZE),)).eval().requires_grad_(False)
    return images, teacher(images)[1]


@pytest.mark.parametrize(
    ("method", "learning_rate"), [("fitnets", 3.0), ("attention", 0.1), ("similarity", 1.0)], ids=METHODS
)
def test_a_student_comes_nearer_to_the_teacher_s_features_in_a_few_steps(
    method: str, learning_rate: float, teacher_features: tuple[torch.Tensor, tuple[torch.Tensor, ...]]
) -> None:
    images, wanted = teacher_features
    torch.manual_seed(1)
    network = DepthwiseStudent(4, base=2)
    student = tapped(network, (default_tap(network, SIZE),), project_to=[wanted[0].shape[1]])
    optimizer = torch.optim.SGD(student.parameters(), lr=learning_rate)
    losses = []
    for _ in range(6):
        loss = FEATURE_METHODS[method](student(images)[1], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses
    assert student.projectors[0].weight.grad.abs().max() > 0
