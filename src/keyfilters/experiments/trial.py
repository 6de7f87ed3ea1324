"""One small network trained and measured: what all experiments repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import floor, inf, log2
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.query_strings import parse
from keyfilters.surgery import initialize_filters_
from keyfilters.training import Data, Recipe, accuracy, load_data, make_model, normalise, train

__all__ = [
    "Setup",
    "build_network",
    "check_batch",
    "load",
    "measure",
    "train_and_measure",
    "watched",
]

OWN = "convmixer"  # the one network whose kernel size, width and depth can all be chosen
TEST_BATCH = 250
OFFERED = ("samples", "classes", "root")  # options of a data set


@dataclass(frozen=True)
class Setup:
    """What all runs of an experiment share.

    Attributes:
        network: ``"convmixer"`` (batch normalisation, one resolution), or a timm model, of which
            only ConvNeXt's have a kernel size to choose.
        width: channels of convmixer.
        depth: blocks of convmixer.
        size: kernel size of the depthwise filters, in taps.
        std: of the first depthwise filters, drawn anew from a truncated normal distribution; 0
            leaves the network's own.
        epochs: passes over the training images.
        batch: images a step.
        lr: of AdamW, with a cosine after one epoch of warm-up, or less in short runs: at most a
            quarter of `epochs`, and half of a run of fewer steps.
        weight_decay: of AdamW.
        channels: 1 or 3; 0 takes the data's.
        resolution: side of the images in pixels; 0 takes the data's.
        watched: test images looked at after every epoch; in the end all are.
        device: "cpu", "cuda", …; empty takes the best there is.

    Raises:
        KeyFiltersError: a number that is out of its range.
    """

    network: str = OWN
    width: int = 32
    depth: int = 4
    size: int = 5
    std: float = 0.0
    epochs: float = 15
    batch: int = 64
    lr: float = 0.01
    weight_decay: float = 0.05
    channels: int = 0
    resolution: int = 0
    watched: int = 1000
    device: str = ""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "size", "epochs", "batch", "lr", "watched"):
            if not getattr(self, name) > 0:
                raise KeyFiltersError(f"{name} is {getattr(self, name)}; a number above 0 expected")
        for name in ("width", "depth", "size"):
            if not isinstance(getattr(self, name), int):
                raise KeyFiltersError(f"{name} is {getattr(self, name)}; a whole number expected")
        if self.std < 0:
            raise KeyFiltersError(f"std is {self.std}; 0 or more is expected")

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Self:
        """Take what concerns a setup from a run's options."""
        return cls(**{f.name: options[f.name] for f in fields(cls) if f.name in options})

    def to_dict(self) -> dict[str, Any]:
        """All values as JSON knows them; without `std` if that is 0."""
        return {name: x for name, x in asdict(self).items() if name != "std" or x}

    def recipe(self, seed: int, steps: int = 0, images: int = 0, **sections: Any) -> Recipe:
        """Return the recipe of a run on so many images; `steps`, unless 0, replaces the epochs."""
        epochs = steps * self.batch / images if steps and images else inf
        return Recipe.from_dict(
            {
                "seed": seed,
                "optimiser": {"name": "adamw", "lr": self.lr, "weight_decay": self.weight_decay},
                "schedule": {
                    "epochs": self.epochs,
                    "steps": steps,
                    "warmup_epochs": min(1.0, self.epochs / 4, epochs / 2),
                    "select": "last",
                },
                "batch": {"size": self.batch},
                "checkpoint": {"steps": 1000},
                "channels_last": True,  # on a CPU twice as fast
                **sections,
            }
        )


def load(asked: str, setup: Setup, seed: int) -> Data:
    """Load a data set such as ``"fashion-mnist?samples=5000&classes=0,1"``.

    Raises:
        KeyFiltersError: as `keyfilters.training.load_data`; an option that is none of samples,
            classes and root.
    """
    name, options = parse(asked)
    for option in options:
        if option not in OFFERED:
            known = f"{asked!r}: a data set has the options {', '.join(OFFERED)}, not {option!r}"
            raise KeyFiltersError(known + nearest(option, OFFERED))
    if not isinstance(options.get("samples", 0), int):
        raise KeyFiltersError(f"{asked!r}: samples is no whole number")
    classes = options.pop("classes", [])
    options["classes"] = classes if isinstance(classes, list) else [classes]
    return load_data(
        name, channels=setup.channels, resolution=setup.resolution, seed=seed, **options
    )


def build_network(setup: Setup, data: Data, seed: int) -> nn.Module:
    """Build the untrained network; its first weights are a function of the seed.

    Raises:
        KeyFiltersError: no such network, or one whose kernel size cannot be chosen.
    """
    if setup.network == OWN:
        network = _convmixer(setup, data, seed)
    else:
        model = {"name": setup.network, "options": _kernel(setup)}
        network = make_model(setup.recipe(seed, model=model), data)
    if setup.std:
        initialize_filters_(network, "trunc-normal", std=setup.std, seed=seed)
    return network


def _convmixer(setup: Setup, data: Data, seed: int) -> nn.Module:
    from timm.models.convmixer import ConvMixer

    channels, side = data.images.shape[1:3]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = ConvMixer(
            setup.width,
            setup.depth,
            kernel_size=setup.size,
            patch_size=2 ** max(0, floor(log2(side / 8))),  # 8 to 15 places along a side
            in_chans=channels,
            num_classes=len(data.classes),
        )
    return network


def _kernel(setup: Setup) -> dict[str, Any]:
    for name in ("width", "depth"):
        if getattr(setup, name) != getattr(Setup, name):
            raise KeyFiltersError(f"the {name} of {setup.network} cannot be chosen; take {OWN}")
    if setup.network.startswith("convnext"):
        return {"kernel_sizes": setup.size}
    if setup.size != Setup.size:
        raise KeyFiltersError(
            f"the kernel size of {setup.network} cannot be chosen; take {OWN} or a convnext"
        )
    return {}


def train_and_measure(
    setup: Setup,
    network: nn.Module,
    data: Data,
    seed: int,
    folder: Path,
    *,
    steps: int = 0,
    keep: Sequence[int] = (),
) -> dict[str, Any]:
    """Train a network in its folder and return what is compared.

    Args:
        setup: of the experiment.
        network: prepared; trained in place.
        data: to train with and to test on.
        seed: of the order of the images.
        folder: for checkpoints and the trained weights; an interrupted run goes on there.
        steps: replaces the setup's epochs, unless 0.
        keep: steps whose weights stay in the folder.

    Returns:
        top1 (%) and loss (nats) on all test images, train_loss, parameters and trainable (numbers
        of), curve (top1 in % on the watched test images after each epoch) and seconds_training.
    """
    counts = [x.numel() for x in network.parameters()]
    free = [x.numel() for x in network.parameters() if x.requires_grad]
    kept = {"steps": 1000, "keep": list(keep)}
    recipe = setup.recipe(seed, steps, len(data.images), checkpoint=kept)
    device = setup.device or None
    few = watched(data, setup)
    shown = replace(
        data, validation_images=few.test_images, validation_labels=few.test_labels
    )  # they choose nothing: the recipe keeps the last weights
    trained = train(recipe, folder, model=network, data=shown, device=device)
    return {
        **measure(trained.model, data),
        "train_loss": float(trained.history["train_loss"].iloc[-1]),
        "parameters": sum(counts),
        "trainable": sum(free),
        "curve": (100 * trained.history["val_top1"]).tolist(),
        "seconds_training": float(trained.history["seconds"].iloc[-1]),
    }


def check_batch(setup: Setup, data: Data) -> None:
    """Refuse data that fill no batch, before any run.

    Raises:
        KeyFiltersError: fewer training images than a batch has.
    """
    if len(data.images) < setup.batch:
        got = f"{data.name} has {len(data.images)} training images"
        raise KeyFiltersError(f"{got}, fewer than a batch of {setup.batch}; take more")


def watched(data: Data, setup: Setup) -> Data:
    """Leave as many test images as a setup watches, the same ones for every seed."""
    some = torch.randperm(len(data.test_images), generator=torch.Generator().manual_seed(0))
    some = some[: setup.watched].sort().values
    return replace(data, test_images=data.test_images[some], test_labels=data.test_labels[some])


def measure(network: nn.Module, data: Data) -> dict[str, float]:
    """Return top1 (%) and loss (nats) of a network on the CPU over all test images."""
    batches = (
        (normalise(x, data.mean, data.std), y)
        for x, y in zip(
            data.test_images.split(TEST_BATCH), data.test_labels.split(TEST_BATCH), strict=True
        )
    )
    found = accuracy(network, batches, topk=(1,))
    return {"top1": 100 * found["top1"], "loss": found["loss"]}
