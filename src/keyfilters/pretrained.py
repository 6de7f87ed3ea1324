"""Models of timm with their trained weights, from the cache or from the network."""

from __future__ import annotations

from typing import Any

from torch import nn

from keyfilters.network import ask_first, hub_answers

__all__ = ["create_timm"]

# The fields of a configuration that say where weights are.
PLACES = frozenset(
    ("file", "url", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
)


def create_timm(name: str, **options: Any) -> nn.Module:
    """Build a model as ``timm.create_model`` does.

    Trained weights that lie in the hub's cache are taken from there, and the network is not asked.
    Otherwise it must answer within seconds, see `keyfilters.network`.

    Args:
        name: of a model that timm knows, with its tag.
        options: as ``timm.create_model`` takes them.

    Raises:
        OSError: the network does not answer, or weights cannot be had.
        Exception: whatever timm raises.
    """
    import timm

    overlay = options.get("pretrained_cfg_overlay") or {}
    named = PLACES.intersection(overlay) or options.get("pretrained_cfg")  # by the caller
    config = None if named or not options.get("pretrained") else timm.get_pretrained_cfg(name)
    held = None if config is None else _held(config)
    if held is not None:
        changed = {**options, "pretrained_cfg_overlay": {**overlay, "file": held}}
        made: nn.Module = timm.create_model(name, **changed)
        told = getattr(made, "pretrained_cfg", None)
        if isinstance(told, dict) and told.get("file") == held:
            told["file"] = None  # as where it was fetched
        return made
    if (config is not None and config.hf_hub_id) or "hf_hub_id" in overlay:
        hub_answers()
    with ask_first():
        return timm.create_model(name, **options)


def _held(config: Any) -> str | None:
    """Return the safetensors file of a configuration's weights in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    if not config.hf_hub_id or config.custom_load or config.file or config.state_dict:
        return None
    repo, _, revision = config.hf_hub_id.partition("@")
    file = config.hf_hub_filename or "model.safetensors"
    if not file.endswith(".safetensors"):
        return None
    held = try_to_load_from_cache(repo, file, revision=revision or None)
    return held if isinstance(held, str) else None
