"""The layers of a Keras configuration and their kernels, wherever the weights are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from keyfilters.sources.collect import Collector, Geometry
from keyfilters.sources.tensorflow_names import SLOTS, NamedTensor, offer_named

__all__ = ["KINDS", "layers_of", "offer_layers"]

# Class of a layer -> layout of its kernel, and whether it is transposed.
KINDS = {
    "DepthwiseConv2D": "yxcm",
    "SeparableConv2D": "yxcm",
    "DepthwiseConv1D": "xcm",
    "SeparableConv1D": "xcm",
    "Conv1D": "xio",
    "Conv2D": "yxio",
    "Conv3D": "zyxio",
    "Conv1DTranspose": "xoi",
    "Conv2DTranspose": "yxoi",
    "Conv3DTranspose": "zyxoi",
}
ALIASES = {"Convolution2D": "Conv2D", "SeparableConvolution2D": "SeparableConv2D"}
DEEPEST = 30

# (names of the models and layers around it and of the layer itself) -> its tensors
Weights = Callable[[tuple[str, ...], str], list[NamedTensor]]


def layers_of(
    config: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, Mapping[str, Any]]]:
    """Yield (path, class, configuration) of every layer of a model, also of models inside it.

    Raises:
        ValueError: models lie in each other too deep.
    """
    if len(path) > DEEPEST:
        raise ValueError(f"models lie in each other more than {DEEPEST} deep")
    inside = config.get("config", config) if isinstance(config, Mapping) else config
    listed = inside.get("layers") if isinstance(inside, Mapping) else inside
    for layer in listed if isinstance(listed, list) else []:
        if not isinstance(layer, Mapping) or not isinstance(layer.get("config"), (Mapping, list)):
            continue
        own = layer["config"]
        held = own if isinstance(own, Mapping) else {}
        name = str(held.get("name") or layer.get("name") or "")
        kind = str(layer.get("class_name", ""))
        yield (*path, name), kind, held
        if isinstance(own, list) or "layers" in held:
            yield from layers_of(layer, (*path, name))
        elif isinstance(held.get("layer"), Mapping):  # TimeDistributed and like
            yield from layers_of([held["layer"]], (*path, name))


def offer_layers(collector: Collector, config: Any, weights: Weights) -> set[str]:
    """Offer the convolutions of a configuration; return the names of the tensors that were used."""
    used: set[str] = set()
    for path, kind, held in layers_of(config):
        kind = ALIASES.get(kind, kind)
        name = "/".join(path[-1:])
        tensors = weights(path, kind)
        if kind not in KINDS:
            inside = "layers" in held or any("depthwise_kernel" in x.name for x in tensors)
            if "Conv" in kind and not inside:
                collector.skip(name, f"layer {kind}, which is not read")
            continue
        layout = KINDS[kind]
        if not tensors:
            collector.skip(name, "its weights are not in the file")
            continue
        fits = [x for x in tensors if len(x.shape) == len(layout)]
        kernel = next((x for x in fits if "depthwise_kernel" in x.name), (fits or tensors)[0])
        used |= {x.name for x in tensors}
        axes = len(layout) - 2
        padding = str(held.get("padding", "valid")).lower()
        groups = held.get("groups", 1)
        geometry = Geometry(
            groups=groups if isinstance(groups, int) and "o" in layout else None,
            transposed="Transpose" in kind,
            stride=_numbers(held.get("strides", 1), axes),
            dilation=_numbers(held.get("dilation_rate", 1), axes),
            padding=(0,) * axes if padding == "valid" else padding,
        )
        collector.kernel(name, layout, kernel.shape, kernel.load, geometry)
    return used


def offer_rest(collector: Collector, tensors: list[NamedTensor], used: set[str]) -> None:
    """Offer depthwise kernels that belong to no layer of the configuration, by their names."""
    for name, shape, load in tensors:
        if name in used or len(shape) not in (3, 4) or SLOTS.search(name):
            continue
        if "depthwise_kernel" in name:
            offer_named(collector, name, shape, load)


def _numbers(value: Any, axes: int) -> tuple[int, ...] | None:
    found = list(value) if isinstance(value, (list, tuple)) else [value] * axes
    return tuple(found) if all(isinstance(x, int) for x in found) else None
