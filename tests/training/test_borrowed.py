"""What a run borrows of the process, and gives back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from keyfilters.training import Recipe, load_data, train
from keyfilters.training.processes import own_accelerate


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_accelerator_is_left_alone(fails: bool) -> None:
    with own_accelerate():
        mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(not fails)
        data, made = load_data("digits", samples=64), Recipe.from_dict({"schedule": {"steps": 1}})
        raised: Any = ()
        try:
            train(made, model=net, data=data, device="cpu")
        except ValueError as error:
            raised = error
        assert bool(raised) == fails
        assert mine.mixed_precision == "bf16" and mine.device == torch.device("cpu")
        assert mine.gradient_accumulation_steps == 3 and mine.num_processes == 1
    with own_accelerate():
        assert Accelerator(cpu=True).mixed_precision == "no"
