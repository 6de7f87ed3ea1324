"""One network built, treated, trained and measured: the run of every experiment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from keyfilters.depthwise import depthwise_layers
from keyfilters.errors import KeyFiltersError
from keyfilters.experiments.run import Run, code_digest
from keyfilters.experiments.run_parts import (
    build_network,
    forget_data,
    load,
    measure,
    recipe_of,
    watched,
)
from keyfilters.query_strings import parse
from keyfilters.sources import read
from keyfilters.training import Data, train, write_weights
from keyfilters.treatment import Treatment

with suppress(ModuleNotFoundError):  # loaded here, so that the server of `LocalProcesses` has it
    import accelerate  # noqa: F401

__all__ = ["MODEL", "forget", "layer_count", "make_run", "single_run"]

FUNCTION = f"{__name__}:single_run"
MODEL = "model.safetensors"  # in the folder of a run: the trained weights
DEPTHWISE = "depthwise"


def single_run(options: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """Perform one run.

    Options, all but data optional (the defaults of the others are those of `Shared`):

    - data: such as ``"fashion-mnist?samples=500&classes=0,1"``; images_seed draws the samples, by
      default `seed`; samples and noise: share of the training images that is used, and of their
      labels that is replaced by random ones.
    - network, width, depth, size, std: see `build_network`.
    - epochs, batch, lr, weight_decay, recipe, changes: see `recipe_of`.
    - start: a file of weights to start from; ``@ROLE/FILE`` is in the folder of a source.
    - treatment: what is done to the filters, a line for `Treatment.parse`, with ``@ROLE``.
    - weights: ``{"layers": "depthwise" or "pointwise", "first": n or None, "source": "@ROLE" or "",
      "freeze": bool}``: weights that are copied from a source, or frozen.
    - watched: number of test images that are looked at after each epoch.
    - keep: steps whose weights stay in the folder; measure: ``module:name`` of a function that
      returns numbers for a network, called for each of these steps.
    - before: whether to measure before training too.

    Returns:
        top1 (%) and loss (nats) on all test images, before (top1 in %, if asked), train_loss,
        parameters and trainable (numbers of), rms (of the first filters, median over layers), curve
        (top1 in % on the watched test images after each epoch) and seconds_training; of the steps
        kept also ``NAME_on_the_way`` of accuracy and each measure, and ``NAME_half``: the step from
        which on half of what it gains is there.
    """
    sources = options.get("sources", {})
    data = load(options, seed)
    network = build_network(options, data, seed)
    if start := options.get("start"):
        network.load_state_dict(load_file(_found(start, sources)))
    treatment = options.get("treatment", "learned")
    for role, path in sources.items():
        treatment = treatment.replace(f"@{role}", str(Path(path, MODEL)))
    treated = Treatment.parse(treatment).apply_(network, seed)
    still = _weights_(network, options.get("weights"), sources)
    before = {"before": measure(network, data)["top1"]} if options.get("before") else {}
    rms = float(np.median([np.sqrt((x.weight**2).mean()) for x in read(network).layers]))
    counts = [(x.numel(), x.requires_grad) for x in network.parameters()]
    recipe = recipe_of(options, seed, len(data.images))
    device, few = options.get("device") or None, watched(data, options)
    seen = replace(data, validation_images=few.test_images, validation_labels=few.test_labels)
    trained = train(recipe, folder, model=network, data=seen, device=device)  # keeps the last
    still()
    treated.finish(trained.model)
    write_weights(folder / MODEL, trained.model)  # by the names that plain filters have
    return {
        **measure(trained.model, data),
        **before,
        "train_loss": float(trained.history["train_loss"].iloc[-1]),
        "parameters": sum(count for count, _ in counts),
        "trainable": sum(count for count, free in counts if free),
        "rms": rms,
        "curve": (100 * trained.history["val_top1"]).tolist(),
        "seconds_training": float(trained.history["seconds"].iloc[-1]),
        **_on_the_way(options, trained.model, few, seed, folder),
    }


def make_run(
    factors: Mapping[str, Any],
    seed: int,
    options: Mapping[str, Any],
    sources: Mapping[str, Run] | None = None,
) -> Run:
    """Return a run of `single_run`, refused if it cannot work.

    Raises:
        KeyFiltersError: data, a network, a treatment or numbers that cannot be had.
    """
    _check(json.dumps({k: x for k, x in options.items() if k != "images_seed"}, sort_keys=True))
    contents = _contents(json.dumps(_data_options(options)), options.get("treatment", "learned"))
    for name, value in parse(options.get("network", ""))[1].items():
        if isinstance(value, str) and Path(value).is_file():
            digest = hashlib.sha256(Path(value).read_bytes()).hexdigest()[:16]
            contents = {**contents, f"network {name}": digest}
    if function := options.get("measure"):
        contents = {**contents, "measure": code_digest(function.partition(":")[0])}
    return Run(factors, seed, FUNCTION, options, sources or {}, contents)


def layer_count(options: Mapping[str, Any], layers: str) -> int:
    """Return the number of depthwise or pointwise layers of the network of a run."""
    return len(_layers(build_network(options, load(options, 0), 0), layers))


def _layers(network: nn.Module, layers: str) -> dict[str, Tensor]:
    """Return weights by name, from the input on: depthwise, or dense 1×1 convolutions."""
    if layers == DEPTHWISE:
        return {f"{name}.weight": conv.weight for name, conv in depthwise_layers(network)}
    return {
        f"{name}.weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    }


def _weights_(
    network: nn.Module, wanted: Mapping[str, Any] | None, sources: Mapping[str, str]
) -> Callable[[], None]:
    """Copy and freeze what `single_run` is told; return what raises if frozen weights moved."""
    if wanted is None:
        return lambda: None
    chosen = dict(list(_layers(network, wanted["layers"]).items())[: wanted.get("first")])
    if not chosen:
        raise KeyFiltersError(f"the network has no {wanted['layers']} layers; leave them out")
    if source := wanted.get("source"):
        state = load_file(_found(f"{source}/{MODEL}", sources))
        with torch.no_grad():
            for name, weight in chosen.items():
                weight.copy_(state[name])
    kept = {name: x.clone() for name, x in chosen.items()} if wanted.get("freeze") else {}
    for name in kept:
        chosen[name].requires_grad_(False)

    def check() -> None:
        moved = [name for name, x in kept.items() if not torch.equal(chosen[name].cpu(), x)]
        if moved:
            raise KeyFiltersError(f"weights were frozen, but moved: {', '.join(moved)}")

    return check


def _on_the_way(
    options: Mapping[str, Any], network: nn.Module, data: Data, seed: int, folder: Path
) -> dict[str, Any]:
    """Measure the weights of every step that was kept; the last measures are results too."""
    if not options.get("measure"):
        return {}
    function, steps, rows = resolve_name(options["measure"]), list(options["keep"]), []
    for step in steps:
        network.load_state_dict(load_file(folder / f"step-{step}.safetensors"))
        found = {"accuracy": measure(network.eval(), data)["top1"], **function(network, seed)}
        rows.append(found)
    lists = {name: [row[name] for row in rows] for name in rows[0]}
    last = {name: values[-1] for name, values in lists.items() if name != "accuracy"}
    return {
        **last,
        "steps": steps,
        **{f"{name}_on_the_way": values for name, values in lists.items()},
        **{f"{name}_half": _half(values, steps) for name, values in lists.items()},
    }


def _half(values: Sequence[float], steps: Sequence[int]) -> float:
    """Return the first step from which on half of the gain stays reached; NaN without a gain."""
    gained = np.array(values) - values[0]
    if not gained[-1] > 0:
        return float("nan")
    late = np.flatnonzero(gained < gained[-1] / 2)
    return float(steps[late[-1] + 1 if len(late) else 0])


def _found(name: str, sources: Mapping[str, str]) -> Path:
    """Return the path of ``@ROLE/FILE``, or of any other file."""
    if not name.startswith("@"):
        return Path(name)
    role, _, file = name[1:].partition("/")
    return Path(sources[role], file)


def _data_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options.get(name, 0) for name in ("data", "channels", "resolution")}


@cache
def _check(given: str) -> None:
    """Refuse options that cannot work, by the first seed."""
    options = json.loads(given)
    data = load(options, 0)
    recipe = recipe_of(options, 0, len(data.images))
    if len(data.images) < recipe.batch.size:
        got = f"{data.name} has {len(data.images)} training images"
        raise KeyFiltersError(f"{got}, fewer than a batch of {recipe.batch.size}; take more")
    network = build_network(options, data, 0)
    treatment = options.get("treatment", "learned")
    if "@" not in treatment:
        Treatment.parse(treatment).apply_(network)
    if options.get("weights"):
        _weights_(network, {**options["weights"], "source": ""}, {})


@cache
def _contents(data_options: str, treatment: str) -> dict[str, str]:
    """Return digests of all images of the data set, and of what the treatment names."""
    options = json.loads(data_options)
    name, _, rest = options["data"].partition("?")
    whole = [part for part in rest.split("&") if part and not part.startswith("samples=")]
    options["data"] = f"{name}?{'&'.join(whole)}" if whole else name
    described = json.dumps(load(options, 0).describe(), sort_keys=True)
    found = {"data": hashlib.sha256(described.encode()).hexdigest()[:16]}
    return found | Treatment.parse(treatment).contents()


def forget() -> None:
    """Forget what was read of data and files: they may change before the next experiment."""
    for cached in (_check, _contents):
        cached.cache_clear()
    forget_data()
