"""Reading models by their timm name, from the Hugging Face hub, or from a folder laid out like it.

Everything that may reach for the network is in this module.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from keyfilters.bank import FilterBank
from keyfilters.errors import SourceError, nearest
from keyfilters.network import OFFLINE
from keyfilters.pretrained import create_timm
from keyfilters.seeds import checked_seed
from keyfilters.sources.modules import read_module

__all__ = ["is_timm_folder", "load_timm", "read_timm", "read_timm_folder"]


def read_timm(spec: str, seed: int = 0, *, fused: bool = False) -> FilterBank:
    """Read a model of timm's registry; see `load_timm` and `read_module`."""
    module, label = load_timm(spec, seed)
    return read_module(module, label, fused=fused)


def load_timm(spec: str, seed: int = 0) -> tuple[nn.Module, str]:
    """Build a model of timm's registry.

    Args:
        spec: ``NAME[.TAG][?pretrained=false]``. Without pretrained weights the model is initialised
            from the seed, which makes an untrained control.
        seed: of that initialisation.

    Returns:
        The model, and a name for it.

    Raises:
        SourceError: unknown name, tag or option; weights that cannot be had.
    """
    import timm

    name, _, query = spec.partition("?")
    pretrained = _pretrained(query, spec)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = [*timm.list_models(), *timm.list_pretrained()]
        raise SourceError(f"timm has no model {name!r}{nearest(name, known)}")
    if pretrained:
        tags = timm.list_pretrained(f"{architecture}.*")
        if not tags or (tag and name not in tags):
            have = f"it has {', '.join(tags)}" if tags else "it has none"
            raise SourceError(
                f"timm has no pretrained weights {name!r}; {have}; for an untrained model type: "
                f"timm:{architecture}?pretrained=false"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(checked_seed(seed))
        try:
            module = create_timm(name, pretrained=pretrained)
        except _download_errors() as error:
            raise SourceError(
                f"the weights of timm:{name} cannot be downloaded ({_first_line(error)}); "
                f"{_mend(error)}; for an untrained model type: timm:{architecture}?pretrained=false"
            ) from error
    return module, name if pretrained else f"{name} (untrained, seed {seed})"


def is_timm_folder(folder: Path) -> bool:
    """Tell whether a folder holds one timm model as timm's ``save_for_hf`` or the hub lay it.

    Only with safetensors: pickles go through our own reader, which refuses code.
    """
    if not any(folder.glob("*.safetensors")):
        return False
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "architecture" in config


def read_timm_folder(folder: Path, model: str) -> FilterBank:
    """Read a folder with timm's ``config.json`` and its weights.

    Raises:
        SourceError: the configuration and the weights do not make a model.
    """
    import timm
    from safetensors import SafetensorError

    known = (RuntimeError, OSError, ValueError, KeyError, TypeError, AssertionError)
    try:
        with torch.random.fork_rng(devices=[]):
            module = timm.create_model(f"local-dir:{folder.absolute()}", pretrained=True)
    except (*known, SafetensorError) as error:
        raise SourceError(
            f"{folder} looks like a timm model but cannot be loaded: {_first_line(error)}"
        ) from error
    return read_module(module, model)


def _pretrained(query: str, spec: str) -> bool:
    """Understand what follows the question mark; the default is pretrained weights."""
    values = {"": True, "pretrained=true": True, "pretrained=false": False}
    if query.lower() not in values:
        raise SourceError(
            f"cannot understand ?{query} in timm:{spec}; write ?pretrained=false or leave it out"
        )
    return values[query.lower()]


def _download_errors() -> tuple[type[BaseException], ...]:
    """Return what the hub's client raises: OSError, its own errors, and those of its transport.

    The transport changes between versions; the client's own HTTP error derives from it.
    """
    from huggingface_hub import errors

    return (OSError, RuntimeError, errors.HFValidationError, *errors.HfHubHTTPError.__bases__)


def _mend(error: BaseException) -> str:
    """Return what to do: about a cache that cannot be written, or about the network."""
    kept = isinstance(error, OSError) and error.filename and not isinstance(error, ConnectionError)
    return "set HF_HOME to a folder that can be written" if kept else OFFLINE


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
