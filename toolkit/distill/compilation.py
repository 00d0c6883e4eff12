"""torch.compile and images that grow: it compiles once for each size, and only for so many."""

from toolkit.distill.plan import Plan, image_size_of, section_name
from toolkit.distill.provenance import is_given
from toolkit.errors import RecipeError
from toolkit.modeldir import Role
from toolkit.recipe import Recipe
from toolkit.settings import StageRecipe

MOST_SIZES = 8
"""Each takes 20 to 40 s to compile; more of them take longer than they save."""


def require_few_sizes(recipe: Recipe) -> None:
    """RecipeError if torch.compile would have to compile a network that is trained for more than 8 image sizes."""
    if recipe.training.compile == "off":
        return
    trained: dict[Role, StageRecipe] = {"student": recipe.distill}
    if not is_given(recipe):
        trained["teacher"] = recipe.teacher
    for role, section in trained.items():
        name = section_name(role)
        if (count := len(_sizes(section, recipe.data_of(role).image_size))) > MOST_SIZES:
            raise RecipeError(
                f"training.compile = {recipe.training.compile}: images grow through {count} sizes"
                f" ({name}.start_image_size), each of which is compiled by itself; at most {MOST_SIZES} are allowed",
                f"use a larger {name}.start_image_size, 0 for full size throughout, or training.compile=off",
            )


def make_room(plan: Plan) -> None:
    """Let torch compile every size of `plan`.

    torch counts the sizes of teacher and student together. From the ninth on they run uncompiled, and only its log has
    a line about it.
    """
    if plan.compile == "off":
        return
    from torch._dynamo import config

    sizes = len(_sizes(plan.section, plan.image_size))
    config.recompile_limit += sizes
    config.accumulated_recompile_limit += sizes


def _sizes(section: StageRecipe, full_size: int) -> set[int]:
    """px"""
    return {image_size_of(epoch, section, full_size) for epoch in range(section.epochs)}
