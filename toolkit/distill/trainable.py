"""Whether a network can be trained on the smallest images and batches of its recipe, tried with one or two images.

Batch norm divides by the spread of each channel, over a batch and its maps. Where a network leaves a map of 1×1, one
image has a single value per channel, which has no spread.
"""

import torch
from torch import nn

from toolkit.distill import distributed
from toolkit.distill.plan import image_size_of, section_name
from toolkit.errors import RecipeError, one_line
from toolkit.modeldir import Role
from toolkit.recipe import Recipe


def require_trainable(network: nn.Module, recipe: Recipe, role: Role) -> None:
    """RecipeError unless `network` takes the images of `role`'s first epoch, the smallest, in batches of its section.

    Its weights and statistics stay as they are, and torch's random numbers too.
    """
    section, name = recipe.stage_of(role), section_name(role)
    full_size = recipe.data_of(role).image_size
    size = image_size_of(0, section, full_size)
    setting = (
        f"{'data' if full_size == recipe.data.image_size else 'teacher'}.image_size"
        if size == full_size
        else f"{name}.start_image_size"
    )
    try:
        least = least_batch(network, size)
    except (AssertionError, RuntimeError, ValueError) as error:  # whatever networks say no with
        other = "another architecture" if size == full_size else "0 for full size throughout"
        raise RecipeError(
            f"{role}: the network cannot take images of {size} px ({setting}): {one_line(error)}",
            f"use a larger {setting}, or {other}",
        ) from None
    if least > 1 and section.batch_size < (least := least * distributed.world_size()):
        architecture = (recipe.teacher if role == "teacher" else recipe.student).architecture
        raise RecipeError(
            f"{name}.batch_size = {section.batch_size} is too small: of an image of {size} px, a batch norm of"
            f" {architecture} sees one value per channel, and it needs two to train",
            f"use --set {name}.batch_size={least} or more, or a larger {setting}",
        )


def least_batch(network: nn.Module, image_size: int) -> int:
    """How many images of `image_size` px `network` has to see at once to be trained: 1, or 2 where a batch norm asks.

    Raises what the network does if it cannot be trained on two. Its weights and statistics stay as they are, and
    torch's random numbers too.
    """
    parameter = next(network.parameters(), torch.empty(0))
    images = torch.zeros(2, 3, image_size, image_size, device=parameter.device)
    statistics = {name: values.clone() for name, values in network.named_buffers()}
    gpus = [images.device] if images.is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(gpus):
            network.train()
            try:
                network(images[:1])
            except ValueError:  # of torch.nn.functional.batch_norm
                network(images)
                return 2
            return 1
    finally:
        for name, values in network.named_buffers():
            values.copy_(statistics[name])
