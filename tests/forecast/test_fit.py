"""Fitting into minutes: the settings that are given up, their order, and a result that fits."""

import itertools

import pytest
from forecast_samples import MadeUpSpeeds, make_facts, make_recipe

from toolkit.errors import RecipeError
from toolkit.forecast.estimate import estimate
from toolkit.forecast.facts import Facts
from toolkit.forecast.fit import AIM, RecipeChoice, fit
from toolkit.recipe import Recipe


def long_recipe(*overrides: str) -> Recipe:
    return make_recipe("teacher.epochs=30", "distill.epochs=60", *overrides)


def fitted(recipe: Recipe, minutes: float, facts: Facts | None = None, spent_s: float = 0.0) -> RecipeChoice:
    facts = facts or make_facts()
    result = fit(recipe, facts, MadeUpSpeeds(), minutes, lambda: spent_s)
    assert result.forecast.seconds <= minutes * 60 * AIM - spent_s
    assert recipe.with_overrides(result.overrides) == result.recipe, "the same can be had by --set"
    return result


def test_a_recipe_that_fits_is_left_as_it_is() -> None:
    recipe = make_recipe()
    assert fitted(recipe, 200).overrides == ()
    assert fitted(recipe, 200).recipe is recipe


def test_epochs_go_first_in_the_recipe_s_proportion() -> None:
    whole = estimate(long_recipe(), make_facts(), MadeUpSpeeds()).seconds
    result = fitted(long_recipe(), whole / 60 / 2)
    chosen = result.recipe
    assert {setting.partition("=")[0] for setting in result.overrides} == {"distill.epochs", "teacher.epochs"}
    assert 20 < chosen.distill.epochs < 30
    assert chosen.teacher.epochs == round(chosen.distill.epochs / 2)
    assert result.gave_up == (
        f"epochs of the teacher: {chosen.teacher.epochs} instead of 30",
        f"epochs of student and control: {chosen.distill.epochs} instead of 60",
    )
    more = [f"distill.epochs={chosen.distill.epochs + 2}", f"teacher.epochs={chosen.teacher.epochs + 1}"]
    one_more = chosen.with_overrides(more)
    assert estimate(one_more, make_facts(), MadeUpSpeeds()).seconds > whole / 2 * AIM, "no time is left unused"


def test_then_views_then_sizes_then_images_each_only_if_too_few_epochs_would_be_left() -> None:
    order = []
    for minutes in (400, 150, 110, 70, 60, 50, 40, 30, 20, 15):
        names = {setting.partition("=")[0] for setting in fitted(long_recipe(), minutes).overrides}
        order.append(names - {"distill.epochs", "teacher.epochs"})
    assert all(fewer <= more for fewer, more in itertools.pairwise(order)), "ever more is given up"
    assert order[0] == set()
    ways = ["distill.teacher_views", "distill.start_image_size", "data.image_size", "data.share"]
    first = [next(number for number, names in enumerate(order) if way in names) for way in ways]
    assert first == sorted(first)


def test_smaller_images_are_decoded_again_and_start_smaller_still() -> None:
    result = next(
        result
        for result in (fitted(long_recipe(), minutes) for minutes in range(80, 10, -2))
        if "data.image_size" in " ".join(result.overrides)
    )
    data = result.recipe.data
    assert (data.image_size, data.resize) in {(64, 71), (48, 53)}
    assert result.recipe.distill.start_image_size <= data.image_size
    assert next(stage for stage in result.forecast.stages if stage.name == "decode").seconds > 0
    assert sum(sentence.startswith("size:") for sentence in result.gave_up) == 1


def test_a_teacher_that_is_there_or_given_keeps_its_epochs_and_its_size() -> None:
    for facts in (make_facts(there=frozenset({("teacher", 0)})), make_facts(given_teacher=True)):
        for minutes in (30, 20, 15):
            names = {setting.partition("=")[0] for setting in fitted(long_recipe(), minutes, facts).overrides}
            assert "distill.epochs" in names
            assert not names & {"teacher.epochs", "data.image_size", "teacher.start_image_size"}


def test_the_training_images_of_a_teacher_that_is_there_stay() -> None:
    facts = make_facts(there=frozenset({("teacher", 0)}))
    assert "data.share" not in " ".join(fitted(long_recipe(), 15, facts).overrides)


def test_the_teacher_alone_has_its_own_epochs_fitted() -> None:
    names = [s.partition("=")[0] for s in fitted(long_recipe(), 200, make_facts("teacher")).overrides]
    assert names == ["teacher.epochs"]


def test_only_what_is_found_is_measured() -> None:
    """Sizes that are given up on the way are reckoned with."""
    speeds = MadeUpSpeeds()
    result = fit(long_recipe("data.image_size=160", "data.resize=176"), make_facts(), speeds, 60)
    assert result.recipe.data.image_size == 80
    sizes = {side for _, side in speeds.asked}
    assert 160 in sizes
    assert not sizes & set(range(81, 160)), "nothing of 120 px"


def test_time_that_goes_by_while_measuring_counts() -> None:
    gone = 0.0

    def spent_s() -> float:
        nonlocal gone
        gone += 300
        return gone

    result = fit(long_recipe(), make_facts(), MadeUpSpeeds(), 200, spent_s)
    assert result.forecast.seconds <= 200 * 60 * AIM - gone


def test_time_that_is_gone_counts() -> None:
    fresh, late = fitted(long_recipe(), 400), fitted(long_recipe(), 400, spent_s=3000)
    assert late.recipe.distill.epochs < fresh.recipe.distill.epochs


def test_too_little_for_one_epoch_names_the_least_that_does() -> None:
    expected = (
        r"--minutes 1: 54.0 s are left for the work, but one epoch of each takes .*; give at least --minutes [\d.]+, or"
    )
    with pytest.raises(RecipeError, match=expected) as caught:
        fitted(long_recipe(), 1)
    least = float(caught.value.remedy.split()[4].rstrip(","))
    assert fitted(long_recipe(), least).recipe.distill.epochs >= 1
    with pytest.raises(RecipeError):
        fitted(long_recipe(), least - 0.2)
