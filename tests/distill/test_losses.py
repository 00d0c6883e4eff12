"""The distillation losses against float64 written out in numpy, hand-worked numbers and their identities."""

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from toolkit.distill.losses import cross_entropy, dist_term, dkd_term, hard_term, kd_term, standardize_logits
from toolkit.distill.objective import NetworkOutput, learn_from_teacher
from toolkit.settings import DistillRecipe


def kd_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, *, temperature: float, alpha: float
) -> torch.Tensor:
    """The whole objective of the recipe's method kd."""
    section = DistillRecipe(method="kd", temperature=temperature, alpha=alpha)
    return learn_from_teacher(section)(NetworkOutput(student), labels, NetworkOutput(teacher))


def logits(seed: int, n: int = 8, c: int = 5) -> torch.Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed)) * 3


LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])


def numpy_reference(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, t: float, alpha: float
) -> float:
    """α·T²·Σ p log(p/q) / N + (1−α)·CE in float64, written out."""
    s, q = student.double().numpy(), teacher.double().numpy()

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(1, keepdims=True)
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    log_p, log_q = log_softmax(q / t), log_softmax(s / t)
    soft = (np.exp(log_p) * (log_p - log_q)).sum() / len(s)
    hard = -log_softmax(s)[np.arange(len(s)), labels.numpy()].mean()
    return float(alpha * t * t * soft + (1 - alpha) * hard)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_equals_the_float64_reference(temperature: float, alpha: float) -> None:
    student, teacher = logits(0), logits(1)
    got = kd_loss(student, teacher, LABELS, temperature=temperature, alpha=alpha)
    assert got.item() == pytest.approx(numpy_reference(student, teacher, LABELS, temperature, alpha), rel=1e-5)


def test_direction_is_teacher_to_student_by_a_hand_worked_case() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # KL((3/4, 1/4) ‖ (1/2, 1/2))
    loss = kd_loss(student, teacher, torch.tensor([0]), temperature=1.0, alpha=1.0)
    assert loss.item() == pytest.approx(kl, rel=1e-6)


def test_no_soft_loss_if_student_equals_teacher() -> None:
    same = logits(2)
    assert kd_loss(same, same + 5.0, LABELS, temperature=3.0, alpha=1.0).item() == pytest.approx(0, abs=1e-6)


def test_alpha_zero_is_cross_entropy() -> None:
    student = logits(3)
    expected = torch.nn.functional.cross_entropy(student, LABELS)
    torch.testing.assert_close(kd_loss(student, logits(4), LABELS, temperature=20.0, alpha=0.0), expected)


def test_gradient_equals_the_closed_form() -> None:
    student, teacher = logits(5).double().requires_grad_(), logits(6).double()
    kd_loss(student, teacher, LABELS, temperature=4.0, alpha=0.7).backward()
    p, q = torch.softmax(teacher / 4, 1), torch.softmax(student.detach() / 4, 1)
    hard = torch.softmax(student.detach(), 1) - torch.nn.functional.one_hot(LABELS, 5)
    expected = (0.7 * 4 * (q - p) + 0.3 * hard) / len(LABELS)
    torch.testing.assert_close(student.grad, expected)
    assert torch.autograd.gradcheck(
        lambda s: kd_loss(s, teacher, LABELS, temperature=4.0, alpha=0.7), (student,), eps=1e-6, atol=1e-8
    )


def test_half_precision_logits_are_computed_in_float32() -> None:
    student, teacher = logits(7).bfloat16(), logits(8).bfloat16()
    loss = kd_loss(student, teacher, LABELS, temperature=4.0, alpha=0.5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(numpy_reference(student.float(), teacher.float(), LABELS, 4.0, 0.5), rel=1e-5)


def numpy_softmax(logits: torch.Tensor, t: float) -> np.ndarray:
    exponentials = np.exp(logits.double().numpy() / t)
    return exponentials / exponentials.sum(1, keepdims=True)


def numpy_kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum(1).mean())


def numpy_dkd(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, t: float, target_weight: float, other: float
) -> float:
    """Equation 7 of the paper, image by image, from probabilities."""
    total = 0.0
    for q, p, label in zip(numpy_softmax(student, t), numpy_softmax(teacher, t), labels.tolist(), strict=True):
        p_rest, q_rest = np.delete(p, label), np.delete(q, label)
        binary_p, binary_q = np.array([[p[label], p_rest.sum()]]), np.array([[q[label], q_rest.sum()]])
        nckd = numpy_kl((p_rest / p_rest.sum())[None], (q_rest / q_rest.sum())[None])
        total += target_weight * numpy_kl(binary_p, binary_q) + other * nckd
    return t * t * total / len(student)


def numpy_dist(student: torch.Tensor, teacher: torch.Tensor, t: float, inter: float, intra: float) -> float:
    q, p = numpy_softmax(student, t), numpy_softmax(teacher, t)
    rows = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)]
    columns = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)]
    return float(t * t * (inter * np.mean(rows) + intra * np.mean(columns)))


def numpy_cross_entropy(student: torch.Tensor, target: np.ndarray, smoothing: float) -> float:
    target = target * (1 - smoothing) + smoothing / target.shape[1]
    return float(-(target * np.log(numpy_softmax(student, 1.0))).sum(1).mean())


def dkd(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    labels = LABELS[: len(student)] % student.shape[1]
    return dkd_term(student, teacher, labels, temperature=4.0, target_weight=1.5, other_weight=8.0)


def standardized_kd(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return kd_term(standardize_logits(student), standardize_logits(teacher), temperature=2.0)


TERMS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "kd": functools.partial(kd_term, temperature=4.0),
    "dkd": dkd,
    "dist": functools.partial(dist_term, temperature=4.0, inter_weight=1.5, intra_weight=0.5),
    "hard": hard_term,
    "standardized_kd": standardized_kd,
}

over_terms = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kd_term_equals_the_float64_reference_and_kd_loss_s_soft_part(temperature: float) -> None:
    student, teacher = logits(10), logits(11)
    got = kd_term(student, teacher, temperature=temperature)
    expected = numpy_kl(numpy_softmax(teacher, temperature), numpy_softmax(student, temperature)) * temperature**2
    assert got.item() == pytest.approx(expected, rel=1e-5)
    assert got.item() == kd_loss(student, teacher, LABELS, temperature=temperature, alpha=1.0).item()


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 8.0)])
def test_dkd_term_equals_the_float64_reference(temperature: float, weights: tuple[float, float]) -> None:
    student, teacher = logits(12).double(), logits(13).double()
    got = dkd_term(student, teacher, LABELS, temperature=temperature, target_weight=weights[0], other_weight=weights[1])
    assert got.item() == pytest.approx(numpy_dkd(student, teacher, LABELS, temperature, *weights), rel=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("label", range(5))
def test_kd_is_tckd_and_nckd_weighed_by_what_the_teacher_leaves_to_other_classes(
    temperature: float, label: int
) -> None:
    student, teacher = logits(14, n=1).double(), logits(15, n=1).double()
    left = 1 - torch.softmax(teacher / temperature, 1)[0, label].item()
    got = dkd_term(
        student, teacher, torch.tensor([label]), temperature=temperature, target_weight=1.0, other_weight=left
    )
    torch.testing.assert_close(got, kd_term(student, teacher, temperature=temperature))


def test_dkd_s_other_classes_do_not_see_the_target_s_logit() -> None:
    student, teacher = logits(16), logits(17)
    bonus = 3.0 * torch.nn.functional.one_hot(LABELS, 5)
    others = functools.partial(dkd_term, labels=LABELS, temperature=2.0, target_weight=0.0, other_weight=1.0)
    torch.testing.assert_close(others(student + bonus, teacher), others(student, teacher))
    with_target = functools.partial(dkd_term, labels=LABELS, temperature=2.0, target_weight=1.0, other_weight=0.0)
    assert with_target(student + bonus, student).item() > 0.01


def test_dkd_of_two_classes_has_nothing_to_say_of_the_others() -> None:
    student, teacher, labels = logits(18, c=2), logits(19, c=2), LABELS % 2
    got = dkd_term(student, teacher, labels, temperature=2.0, target_weight=1.0, other_weight=8.0)
    torch.testing.assert_close(got, kd_term(student, teacher, temperature=2.0))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
def test_dist_term_equals_the_float64_reference(temperature: float, weights: tuple[float, float]) -> None:
    student, teacher = logits(20), logits(21)
    got = dist_term(student, teacher, temperature=temperature, inter_weight=weights[0], intra_weight=weights[1])
    assert got.item() == pytest.approx(numpy_dist(student, teacher, temperature, *weights), rel=1e-5)


def test_dist_is_greatest_if_the_student_says_the_opposite() -> None:
    student = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    got = dist_term(student, student.flip(1), temperature=2.0, inter_weight=1.0, intra_weight=3.0)
    assert got.item() == pytest.approx(2 * 2**2 * (1 + 3))


@pytest.mark.parametrize("inter_weight", [0.0, 1.0])
def test_dist_of_constant_rows_and_columns_is_finite_and_without_gradient(inter_weight: float) -> None:
    """A student that says the same of every class and image: all correlations are 0."""
    student = torch.full((8, 5), 0.1, requires_grad=True)
    loss = dist_term(student, logits(22), temperature=4.0, inter_weight=inter_weight, intra_weight=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(16 * (inter_weight + 1))
    assert student.grad is not None
    assert student.grad.eq(0).all()


def test_dist_of_one_image_is_its_inter_class_part_alone() -> None:
    student, teacher = logits(23, n=1).requires_grad_(), logits(24, n=1)
    loss = dist_term(student, teacher, temperature=1.0, inter_weight=1.0, intra_weight=1.0)
    inter = dist_term(student, teacher, temperature=1.0, inter_weight=1.0, intra_weight=0.0)
    assert loss.item() == pytest.approx(inter.item() + 1)
    got, expected = torch.autograd.grad(loss, student), torch.autograd.grad(inter, student)
    torch.testing.assert_close(got, expected)
    assert got[0].abs().max() > 0


def test_hard_term_is_cross_entropy_with_the_teacher_s_answer() -> None:
    student, teacher = logits(25), logits(26)
    answers = np.eye(5)[teacher.numpy().argmax(1)]
    assert hard_term(student, teacher).item() == pytest.approx(numpy_cross_entropy(student, answers, 0.0), rel=1e-5)
    torch.testing.assert_close(hard_term(student, 9 * teacher - 4), hard_term(student, teacher))


def test_standardized_logits_have_mean_0_and_the_population_s_standard_deviation_1() -> None:
    values = logits(27)
    got, array = standardize_logits(values).double().numpy(), values.double().numpy()
    expected = (array - array.mean(1, keepdims=True)) / array.std(1, keepdims=True, ddof=0)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    torch.testing.assert_close(standardize_logits(7 * values - 3), standardize_logits(values))


@pytest.mark.parametrize("constant", [0.0, 0.1, -1234.56])
def test_standardized_constant_logits_are_0_without_gradient(constant: float) -> None:
    values = torch.full((2, 7), constant, requires_grad=True)
    got = standardize_logits(values)
    (got * logits(28, n=2, c=7)).sum().backward()
    assert got.eq(0).all()
    assert values.grad is not None
    assert values.grad.eq(0).all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_equals_the_float64_reference(label_smoothing: float) -> None:
    student, mixed = logits(29), torch.softmax(logits(30), 1)
    got = cross_entropy(student, mixed, label_smoothing=label_smoothing)
    assert got.item() == pytest.approx(numpy_cross_entropy(student, mixed.numpy(), label_smoothing), rel=1e-5)
    got = cross_entropy(student, LABELS, label_smoothing=label_smoothing)
    assert got.item() == pytest.approx(numpy_cross_entropy(student, np.eye(5)[LABELS], label_smoothing), rel=1e-5)


def test_cross_entropy_of_a_mix_is_the_mix_of_cross_entropies() -> None:
    student, others = logits(31), LABELS.flip(0)
    one_hot = functools.partial(torch.nn.functional.one_hot, num_classes=5)
    mixed = 0.3 * one_hot(LABELS) + 0.7 * one_hot(others)
    parts = [cross_entropy(student, labels, label_smoothing=0.0) for labels in (LABELS, others)]
    torch.testing.assert_close(cross_entropy(student, mixed, label_smoothing=0.0), 0.3 * parts[0] + 0.7 * parts[1])


def test_cross_entropy_of_bfloat16_logits_and_probabilities_is_float32() -> None:
    student, mixed = logits(32).bfloat16(), torch.softmax(logits(33), 1).bfloat16()
    got = cross_entropy(student, mixed, label_smoothing=0.1)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(numpy_cross_entropy(student, mixed.float().numpy(), 0.1), rel=1e-5)


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "standardized_kd"])
def test_a_term_is_0_with_gradient_0_if_student_equals_teacher(name: str) -> None:
    student = logits(34).double().requires_grad_()
    loss = TERMS[name](student, student.detach() + 5.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


@over_terms
def test_a_term_is_positive_if_student_differs_from_teacher(term: Callable[..., torch.Tensor]) -> None:
    assert term(logits(35), logits(36)).item() > 0.1


@over_terms
def test_gradient_of_a_term_equals_the_numerical_one(term: Callable[..., torch.Tensor]) -> None:
    student, teacher = logits(37, n=4).double().requires_grad_(), logits(38, n=4).double()
    assert torch.autograd.gradcheck(lambda s: term(s, teacher), (student,), eps=1e-6, atol=1e-7)


@over_terms
@pytest.mark.parametrize("size", [1e-6, 100.0, 1e4])
def test_a_term_and_its_gradient_are_finite_for_any_size_of_logits(
    term: Callable[..., torch.Tensor], size: float
) -> None:
    student, teacher = (size * logits(39)).requires_grad_(), size * logits(40)
    loss = term(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@over_terms
def test_a_term_of_bfloat16_logits_is_computed_in_float32(term: Callable[..., torch.Tensor]) -> None:
    student, teacher = logits(41).bfloat16(), logits(42).bfloat16()
    got = term(student, teacher)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, term(student.double(), teacher.double()).float(), rtol=1e-5, atol=1e-6)
