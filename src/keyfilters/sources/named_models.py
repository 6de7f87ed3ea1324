"""Reading models by a name of torchvision, of Keras, or of a hub's repository of transformers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from keyfilters.bank import FilterBank
from keyfilters.errors import SourceError, nearest
from keyfilters.network import OFFLINE, ask_first
from keyfilters.seeds import checked_seed
from keyfilters.sources.collect import Collector
from keyfilters.sources.keras_layers import offer_layers
from keyfilters.sources.modules import read_module
from keyfilters.sources.tensorflow_names import NamedTensor

__all__ = ["is_transformers_folder", "read_keras_model", "read_torchvision", "read_transformers"]


def _query(spec: str, scheme: str) -> tuple[str, bool]:
    name, _, query = spec.partition("?")
    values = {"": True, "pretrained=true": True, "pretrained=false": False}
    if query.lower() not in values:
        raise SourceError(
            f"cannot understand ?{query} in {scheme}:{spec}; write ?pretrained=false or nothing"
        )
    return name, values[query.lower()]


def read_torchvision(spec: str, seed: int = 0, *, fused: bool = False) -> FilterBank:
    """Read a model of torchvision, ``NAME[?pretrained=false]``, with its default weights.

    Raises:
        SourceError: torchvision is missing, has no such model, or its weights cannot be had.
    """
    name, pretrained = _query(spec, "torchvision")
    try:
        from torchvision import models
    except Exception as error:  # a version that does not fit torch raises RuntimeError
        raise SourceError(
            f"torchvision cannot be imported ({_line(error)}); type: pip install torchvision"
        ) from error
    if name not in models.list_models():
        raise SourceError(f"torchvision has no model {name!r}{nearest(name, models.list_models())}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(checked_seed(seed))
        try:
            with ask_first():
                module = models.get_model(name, weights="DEFAULT" if pretrained else None)
        except (OSError, RuntimeError, ValueError) as error:
            raise SourceError(
                f"the weights of torchvision:{name} cannot be had ({_line(error)}); {OFFLINE}; "
                f"for an untrained model type: torchvision:{name}?pretrained=false"
            ) from error
    label = name if pretrained else f"{name} (untrained, seed {seed})"
    return read_module(module.eval(), label, fused=fused)


def read_keras_model(spec: str, seed: int = 0) -> FilterBank:
    """Read a model of ``keras.applications``, ``NAME[?pretrained=false]``, in its layers' order.

    Raises:
        SourceError: Keras is missing, has no such model, or its weights cannot be had.
    """
    name, pretrained = _query(spec, "keras")
    try:
        import keras
    except Exception as error:
        raise SourceError(
            f"keras:{name} needs Keras ({_line(error)}); type: pip install keras, and set "
            "KERAS_BACKEND=torch where there is no TensorFlow"
        ) from error
    known = {
        x.lower(): x
        for x in dir(keras.applications)
        if x[:1].isupper() and callable(getattr(keras.applications, x))
    }
    if name.lower() not in known:
        raise SourceError(f"keras has no model {name!r}{nearest(name, known.values())}")
    keras.utils.set_random_seed(checked_seed(seed) % 2**32)
    try:
        build = getattr(keras.applications, known[name.lower()])
        with ask_first():
            model = build(weights="imagenet" if pretrained else None)
    except Exception as error:
        raise SourceError(
            f"keras:{name} cannot be built ({_line(error)}); {OFFLINE}; for an untrained model "
            f"type: keras:{name}?pretrained=false"
        ) from error
    label = name if pretrained else f"{name} (untrained, seed {seed})"
    collector = Collector(label)

    def weights(path: tuple[str, ...], kind: str) -> list[NamedTensor]:
        layer: Any = model
        for part in path:
            layer = layer.get_layer(part)
        held = [] if hasattr(layer, "layers") else layer.weights
        arrays = [(x.name, keras.ops.convert_to_numpy(x)) for x in held]
        return [NamedTensor(x, y.shape, lambda y=y: y) for x, y in arrays]  # type: ignore[misc]

    offer_layers(collector, {"config": model.get_config()}, weights)
    return collector.bank()


def is_transformers_folder(folder: Path) -> bool:
    """Tell whether a folder is a model of transformers, and transformers is installed."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    known = isinstance(config, dict) and "model_type" in config and "architecture" not in config
    return known and find_spec("transformers") is not None


def read_transformers(folder: Path, model: str) -> FilterBank | None:
    """Read a folder of transformers by its configuration; None where that makes no model.

    No code of the repository is run.
    """
    import transformers

    try:
        with torch.random.fork_rng(devices=[]):
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            module = transformers.AutoModel.from_pretrained(
                folder, config=config, trust_remote_code=False, local_files_only=True
            )
    except Exception:  # then the state dict tells
        return None
    return read_module(module.eval(), model)


def _line(error: BaseException) -> str:
    return next((x for x in str(error).splitlines() if x.strip()), type(error).__name__)[:200]
