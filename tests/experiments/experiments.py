"""The experiments, as small as they can be, for tests; each is built and run once."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

from keyfilters.experiments import EXPERIMENTS, Experiment, Shared

DATA = "digits?samples=100&classes=0,1,2"
TINY: dict[str, dict[str, Any]] = {
    "initialization": {
        "data": DATA,
        "sizes": (3, 5),
        "condition": ("default", "covariance", "center-surround?gammas=0.5"),
    },
    "transfer": {"target": (DATA,)},
    "depth-curve": {"target": DATA, "source": "digits?classes=4,5,6&samples=100"},
    "replacement": {
        "data": DATA,
        "treatment": ("learned", "frozen", "keys", "keys?keys=random"),
        "early_treatment": ("learned", "keys"),
    },
    "frozen-keys": {
        "data": "digits?classes=0,1,2",
        "samples": (100, 200),
        "condition": ("learned", "frozen", "keys", "keys?drawn=1", "keys?keys=random&learn=bias"),
    },
    "emergence": {"data": DATA, "quality": ("usual", "noise=0.5&lr=0.1")},
    "structure": {"data": DATA, "other": "digits?classes=4,5,6&samples=100"},
}


def build(
    name: str, seeds: int = 1, epochs: float = 1.0, network: str = "convmixer", **changes: Any
) -> Experiment:
    """Return a small experiment by its name."""
    module = importlib.import_module(f"keyfilters.experiments.{EXPERIMENTS[name]}")
    function = getattr(module, EXPERIMENTS[name])
    default: Shared = function.__defaults__[0]
    small = {"width": 8, "depth": 1, "size": 3, "epochs": epochs, "resolution": 0, "seeds": seeds}
    shared = replace(default, **small, network=network, device="cpu")
    if name == "emergence":
        shared = replace(shared, width=16)
    built: Experiment = function(shared, **{**TINY[name], **changes})
    return built
