"""What is said before training, and what is refused there."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from keyfilters.errors import KeyFiltersError
from keyfilters.training import Data, Recipe, plan

SIZED: dict[str, Any] = {"batch": {"size": 64, "accumulation": 2}}


@pytest.fixture
def data() -> Data:
    images = torch.zeros(640, 3, 16, 16, dtype=torch.uint8)
    labels = torch.arange(640) % 4
    return Data("made", images, labels, images[:40], labels[:40], "abcd")


def said(recipe: dict[str, Any], data: Data, processes: int = 1) -> dict[str, str]:
    model = timm.create_model("test_convnext", num_classes=4)
    model.stem.requires_grad_(False)
    return plan(
        Recipe.from_dict({"model": {"name": "test_convnext"}} | recipe), model, data, processes
    )


def test_defaults(data: Data) -> None:
    facts = said({}, data)
    model = timm.create_model("test_convnext", num_classes=4)
    counts = [sum(x.numel() for x in module.parameters()) for module in (model, model.stem)]
    assert facts == {
        "model": f"test_convnext: {counts[0] - counts[1]:,} of {counts[0]:,} parameters learn",
        "data": "made: 640 images of 3×16×16 in 4 classes, 40 to test on",
        "batch": "64 = 1 process × 1 part × 64 images",
        "learning rate": "0.001",
        "schedule": "10 epochs = 100 steps, no warm-up, then a cosine down to 0",
        "layer decay": "none",
        "optimiser": "adamw, weight decay 0.05, none on vectors",
        "augmentation": "none",
        "running mean": "none",
        "precision": "float32",
    }


def test_all_that_can_be_set(data: Data) -> None:
    recipe = SIZED | {
        "precision": "bf16",
        "optimiser": {"base_lr": 8e-4, "layer_decay": 0.5, "clip": 1, "options": {"eps": 1e-7}},
        "schedule": {"steps": 7, "warmup_epochs": 0.5, "min_lr": 1e-6},
        "augmentation": {"flip": True, "mixup": 0.8},
        "ema": {"decay": 0.9999, "warmup": False},
    }
    facts = said(recipe, data, 4)
    assert facts["batch"] == "64 = 4 processes × 2 parts × 8 images"
    assert facts["learning rate"] == "0.0002 = 0.0008 × 64 / 256"
    assert facts["schedule"] == (
        "7 steps, in place of 10 epochs, 0.5 epochs of warm-up (5 steps), then a cosine down to "
        "1e-06"
    )
    assert facts["layer decay"] == (
        "0.5 over 9 layers before the head: 0.5^9 = 0.001953 for the first, 1 for the head"
    )
    assert (
        facts["optimiser"].startswith("adamw, eps 1e-07") and "clipped at 1" in facts["optimiser"]
    )
    assert facts["augmentation"] == "flip True, mixup 0.8" and facts["precision"] == "bf16"
    assert facts["running mean"] == "of the weights, decay 0.9999, without warm-up"


def test_batches_that_cannot_be(data: Data) -> None:
    with pytest.raises(
        KeyFiltersError, match="64 for 3 processes of 2 parts each; a multiple of 6"
    ):
        said(SIZED, data, 3)
    with pytest.raises(KeyFiltersError, match=r"batch.size is 1024, more than the 640 training"):
        said({"batch": {"size": 1024}}, data)
    assert plan(Recipe.from_dict({}), nn.Linear(2, 2), data)["model"].endswith(
        "6 of 6 parameters learn"
    )
