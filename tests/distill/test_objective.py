"""The recipe's objective is the sum that its docstring says, of terms that test_losses and test_features check."""

import pytest
import torch

from toolkit import settings
from toolkit.distill.losses import cross_entropy, dist_term, dkd_term, hard_term, kd_term, standardize_logits
from toolkit.distill.objective import (
    FEATURE_METHODS,
    LOGIT_METHODS,
    METHODS,
    LogitMethod,
    NetworkOutput,
    learn_from_labels,
    learn_from_teacher,
)
from toolkit.errors import RecipeError
from toolkit.recipe import Recipe
from toolkit.settings import OF_TEACHING, DistillRecipe

LABELS = torch.arange(6) % 4


def answers(seed: int, channels: int = 3) -> NetworkOutput:
    generator = torch.Generator().manual_seed(seed)
    return NetworkOutput(
        torch.randn(6, 4, generator=generator) * 3, (torch.randn(6, channels, 5, 5, generator=generator),)
    )


STUDENT, TEACHER = answers(0), answers(1)
LOGITS = (STUDENT.logits, TEACHER.logits)


def objective(student: NetworkOutput = STUDENT, **settings: object) -> float:
    section = DistillRecipe.model_validate({"temperature": 3.0, "alpha": 0.7, **settings})
    return float(learn_from_teacher(section)(student, LABELS, TEACHER))


HARD = cross_entropy(STUDENT.logits, LABELS, label_smoothing=0.0).item()
TERMS = {
    "kd": kd_term(*LOGITS, temperature=3.0),
    "dkd": dkd_term(*LOGITS, LABELS, temperature=3.0, target_weight=1.0, other_weight=8.0),
    "dist": dist_term(*LOGITS, temperature=3.0, inter_weight=1.0, intra_weight=1.0),
    "hard": hard_term(*LOGITS),
}


@pytest.mark.parametrize("method", TERMS)
def test_logits_are_weighed_by_alpha_and_labels_by_the_rest(method: str) -> None:
    assert objective(method=method) == pytest.approx(0.7 * TERMS[method].item() + 0.3 * HARD, rel=1e-6)


@pytest.mark.parametrize("method", ["kd", "dist"])
def test_standardize_changes_both_networks_logits_and_not_the_labels_term(method: str) -> None:
    scores = tuple(standardize_logits(logits) for logits in LOGITS)
    term = {
        "kd": lambda: kd_term(*scores, temperature=3.0),
        "dist": lambda: dist_term(*scores, temperature=3.0, inter_weight=1.0, intra_weight=1.0),
    }[method]().item()
    assert objective(method=method, standardize=True) == pytest.approx(0.7 * term + 0.3 * HARD, rel=1e-6)


@pytest.mark.parametrize("method", FEATURE_METHODS)
def test_layers_alone_join_the_whole_cross_entropy(method: str) -> None:
    term = FEATURE_METHODS[method](STUDENT.features, TEACHER.features).item()
    assert objective(method=method) == pytest.approx(HARD + FEATURE_METHODS[method].weight * term, rel=1e-6)
    assert objective(method=method, feature_weight=0.5) == pytest.approx(HARD + 0.5 * term, rel=1e-6)


def test_a_method_of_each_kind_adds_up() -> None:
    layers = FEATURE_METHODS["similarity"](STUDENT.features, TEACHER.features).item()
    expected = 0.7 * TERMS["dkd"].item() + 0.3 * HARD + 2.0 * layers
    assert objective(method="dkd+similarity", feature_weight=2.0) == pytest.approx(expected, rel=1e-6)


def test_without_features_as_in_validation_layers_are_left_out() -> None:
    assert objective(NetworkOutput(STUDENT.logits), method="attention") == pytest.approx(HARD)


def test_label_smoothing_and_mixed_targets_reach_cross_entropy() -> None:
    mixed = torch.full((6, 4), 0.25)
    smoothed = cross_entropy(STUDENT.logits, mixed, label_smoothing=0.1)
    torch.testing.assert_close(learn_from_labels(0.1)(STUDENT, mixed, None), smoothed)
    section = DistillRecipe(alpha=0.0, label_smoothing=0.1)
    torch.testing.assert_close(learn_from_teacher(section)(STUDENT, mixed, TEACHER), smoothed)


def test_the_settings_name_the_methods_of_the_table_and_no_others() -> None:
    assert tuple(LOGIT_METHODS) == settings.LOGIT_METHODS
    assert tuple(FEATURE_METHODS) == settings.FEATURE_METHODS


@pytest.mark.parametrize("method", LOGIT_METHODS)
def test_the_settings_of_a_method_are_none_of_the_control(method: str) -> None:
    assert set(LOGIT_METHODS[method].settings.values()) <= OF_TEACHING & set(DistillRecipe.model_fields)


@pytest.mark.parametrize("method", METHODS)
def test_the_recipe_refuses_mixed_images_for_those_methods_that_need_labels(method: str) -> None:
    of_method = METHODS[method]
    settings = [f"distill.method={method}", "distill.mixup=0.1"]
    if isinstance(of_method, LogitMethod) and of_method.needs_labels:
        with pytest.raises(RecipeError, match="needs one label per image"):
            Recipe().with_overrides(settings)
    else:
        assert Recipe().with_overrides(settings).distill.method == method
