"""The model of a recipe, and whether a model fits the data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.training.datasets import Data
from keyfilters.training.evaluate import evaluating
from keyfilters.training.recipe import Recipe

__all__ = ["make_model", "try_model"]


def make_model(recipe: Recipe, data: Data) -> nn.Module:
    """Make the recipe's timm model for the classes and channels of the data, by the seed.

    Raises:
        KeyFiltersError: timm has no such model, or it does not take the options.

    >>> from keyfilters.training.datasets import load_data
    >>> recipe = Recipe.from_dict({"model": {"name": "test_convnext"}})
    >>> make_model(recipe, load_data("digits", classes=[0, 1])).num_classes
    2
    """
    import timm

    name, options = recipe.model.name, recipe.model.options
    if not timm.is_model(name):
        message = f"timm has no model {name!r}{nearest(name, timm.list_models())}"
        raise KeyFiltersError(f"{message}; set model.name")
    sizes = {"num_classes": len(data.classes), "in_chans": data.images.shape[1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        try:
            model: nn.Module = timm.create_model(name, **{**sizes, **options})
        except (TypeError, RuntimeError, ValueError) as error:
            message = f"{name} does not take model.options {options}: {error}"
            raise KeyFiltersError(message) from error
    return model


def try_model(model: nn.Module, images: Tensor, classes: int) -> None:
    """Show a model a few images, so that one that does not fit is refused before any work.

    Args:
        model: in any mode, which it keeps.
        images: ``(n, c, h, w)``, normalised, on its device.
        classes: number of logits that it must give.

    Raises:
        KeyFiltersError: it does not take the images, or gives something else.

    >>> try_model(nn.Flatten(), torch.zeros(2, 1, 8, 8), 10)
    Traceback (most recent call last):
    keyfilters.errors.KeyFiltersError: the model gives (64,) for an image; 10 logits are expected
    """
    shape = tuple(images.shape[1:])
    try:
        with evaluating(model), torch.no_grad():
            z = model(images)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        message = f"the model cannot take images of {shape}: {error}"
        mend = "set data.resolution, data.channels or model.options"
        raise KeyFiltersError(f"{message}; {mend}") from error
    if not isinstance(z, Tensor) or z.shape != (len(images), classes):
        got = tuple(z.shape[1:]) if isinstance(z, Tensor) else f"a {type(z).__name__}"
        raise KeyFiltersError(f"the model gives {got} for an image; {classes} logits are expected")
