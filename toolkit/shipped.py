"""Files that ship beside the code: recipes, and weights of given teachers.

In an installed package they lie in `toolkit/recipes/` and `toolkit/weights/` (pyproject.toml puts them there), in a
checkout as `models/<name>/recipe.toml` and `models/<name>/teacher-<architecture>.safetensors`. The name is the same in
both. `teacher.safetensors`, without an architecture, is what a stage writes there, and no part of what ships.
"""

from pathlib import Path

PACKAGE = Path(__file__).parent


def recipe_files() -> dict[str, Path]:
    """Name → TOML file."""
    return _files("recipes", ".toml", "recipe.toml")


def weights_files() -> dict[str, Path]:
    """Name → safetensors file of a teacher."""
    return _files("weights", ".safetensors", "teacher-*.safetensors")


def _files(folder: str, suffix: str, name_in_checkout: str) -> dict[str, Path]:
    installed = {path.stem: path for path in (PACKAGE / folder).glob(f"*{suffix}")}
    in_checkout = {path.parent.name: path for path in (PACKAGE.parent / "models").glob(f"*/{name_in_checkout}")}
    return installed or in_checkout
