"""The model of a recipe, and whether a model fits the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.training.datasets import Data
from keyfilters.training.evaluate import evaluating
from keyfilters.training.recipe import Recipe

__all__ = ["make_model", "try_model"]


def make_model(recipe: Recipe, data: Data) -> nn.Module:
    """Make the recipe's timm model for the classes and channels of the data, by the seed.

    A file of first weights is named in its options: ``{pretrained = true, pretrained_cfg_overlay =
    {file = "PATH"}}``. The head starts anew where the file has none or other classes.

    Raises:
        KeyFiltersError: timm has no such model, it does not take the options, or its pretrained
            weights cannot be had or are those of another network.

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

    def create(**changes: Any) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            made: nn.Module = timm.create_model(name, **{**sizes, **options, **changes})
        return made

    try:
        model = create()
    except OSError as error:  # of a file, or of the hub
        reason = str(error) or "there is no such file"
        mend = 'name a file by model.options.pretrained_cfg_overlay={file = "PATH"}'
        message = f"the pretrained weights of {name} cannot be had: {reason}"
        raise KeyFiltersError(f"{message}; {mend}") from error
    except (TypeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split("\n\t")[:2])  # torch names every mismatch of a file
        message = f"{name} does not take model.options {options}: {reason}"
        raise KeyFiltersError(message) from error
    if options.get("pretrained"):
        _require_read(model, create(pretrained=False), name)
    return model


def _require_read(model: nn.Module, untrained: nn.Module, name: str) -> None:
    """Refuse pretrained weights that leave more than the head as it was drawn.

    Where the classes differ timm takes what a file happens to have, and says nothing of the rest.
    """
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    drawn = dict(untrained.named_parameters())
    missing = [
        key
        for key, x in model.named_parameters()
        if x.ndim > 1 and x.any() and torch.equal(x, drawn[key]) and not key.startswith(heads)
    ]
    if missing:
        message = f"the pretrained weights have no {missing[0]} of {name}"
        more = f" and lack {len(missing) - 1} more of its weights" if len(missing) > 1 else ""
        raise KeyFiltersError(f"{message}{more}; name a file of the same architecture")


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
