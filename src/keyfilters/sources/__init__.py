"""Reading depthwise filters from modules, files, packages and hubs: `read` picks the reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyfilters.bank import FilterBank
from keyfilters.errors import NoFiltersError, SourceError, nearest
from keyfilters.sources.folders import group_files
from keyfilters.sources.formats import READERS, format_table
from keyfilters.sources.hub import download
from keyfilters.sources.modules import is_module, read_module
from keyfilters.sources.named_models import read_keras_model, read_torchvision
from keyfilters.sources.packages import find_distribution, model_files
from keyfilters.sources.paths import read_files, read_folder, read_path
from keyfilters.sources.statedicts import read_state_dict
from keyfilters.sources.timm_models import read_timm
from keyfilters.sources.urls import fetch
from keyfilters.threads import one_thread_if_forked

if TYPE_CHECKING:
    from torch import nn

__all__ = ["READERS", "format_table", "join", "package_files", "read", "read_one"]

_EXAMPLES = {
    "timm": "timm:convnext_tiny",
    "torchvision": "torchvision:mobilenet_v2",
    "keras": "keras:MobileNetV2",
    "hf-hub": "hf-hub:timm/convnext_tiny.fb_in1k",
    "package": "package:rapidocr",
}


def read(
    *sources: nn.Module | Mapping[str, Any] | str | PathLike[str],
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    fused: bool = False,
) -> FilterBank:
    """Read the depthwise filters of one or several sources into one bank.

    Args:
        sources: each one of

            - an ``nn.Module``, or a plain or wrapped state dict;
            - ``"timm:NAME"``, ``"timm:NAME?pretrained=false"`` (an untrained control); likewise
              ``"torchvision:NAME"`` and ``"keras:NAME"``;
            - ``"hf-hub:ORG/REPO"``, also with ``@REVISION``;
            - ``"package:DIST"`` or ``"package:DIST/FILE"``: model files inside an installed Python
              distribution;
            - a file of any format that ``keyfilters sources`` lists, recognised by its bytes and
              not by its name; an archive of such files; the index of a model in several files
              (``.safetensors.index.json``); a bank that `FilterBank.save` wrote. Where a file holds
              several sets of weights, ``FILE#SET`` chooses one;
            - a folder of such files, also a hub's cache, a pattern such as ``"runs/*/best.pth"``,
              or an address (``https://…``). A model in several files is read as one; the same model
              in two formats is counted once.
        seed: initialises models that are read without pretrained weights.
        progress: called with the name of every source or file before it is read.
        fused: for modules and timm models: whether to read the kernels that re-parameterised
            blocks (MobileOne, RepVGG, …) fuse into, in place of their branches.

    Returns:
        The bank. Weights are bit-identical to the stored ones (dequantised where they are stored as
        integers); what was seen and not taken is in ``bank.skipped``.

    Raises:
        SourceError: a source is missing, unknown, damaged or refused.
        NoFiltersError: there is no depthwise filter; the message says what was seen instead.

    >>> from torch import nn
    >>> read(nn.Conv2d(8, 8, 5, groups=8), {"dw.weight": nn.Conv2d(4, 4, 7, groups=4).weight})
    FilterBank(12 filters in 2 layers of 2 models; 5×5: 8, 7×7: 4)
    """
    silent = progress or (lambda name: None)
    return join(sources, (read_one(s, seed, silent, fused=fused) for s in sources))


def join(sources: Sequence[Any], banks: Iterable[FilterBank]) -> FilterBank:
    """Return the banks of several sources as one; see `read`.

    Args:
        sources: what was read, for the message if there is nothing.
        banks: one a source, in this order.
    """
    if not sources:
        raise SourceError("nothing to read; name at least one source, such as timm:convnext_tiny")
    bank = FilterBank([])
    for one in banks:
        bank = bank + one
    if not bank.layers:
        raise NoFiltersError(_what_was_seen(sources, bank))
    return bank


def read_one(
    source: Any,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
    *,
    fused: bool = False,
) -> FilterBank:
    """Read one source, which may hold no depthwise filter; see `read`."""
    with one_thread_if_forked():
        return _read_one(source, seed, progress, fused)


def _read_one(source: Any, seed: int, progress: Callable[[str], None], fused: bool) -> FilterBank:
    if isinstance(source, Mapping):
        return read_state_dict(source, "state_dict")
    if is_module(source):
        return read_module(source, fused=fused)
    if not isinstance(source, (str, PathLike)):
        raise SourceError(
            f"cannot read a {type(source).__name__}; expected an nn.Module, a state dict, a path, "
            "or a name such as timm:convnext_tiny"
        )
    text = fspath(source)
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    scheme, _, rest = text.partition(":")
    if scheme in _EXAMPLES and not rest:
        raise SourceError(f"{scheme}: names nothing; type for example {_EXAMPLES[scheme]}")
    if scheme == "package":
        return read_files(group_files(package_files(rest)), progress)
    progress(text)
    if scheme == "timm":
        return _read_timm(rest, seed, fused)
    if scheme == "torchvision":
        return read_torchvision(rest, seed, fused=fused)
    if scheme == "keras":
        return read_keras_model(rest, seed)
    if scheme == "hf-hub":
        return read_folder(download(rest), progress, model=rest)
    if rest.startswith("//"):
        address, _, chosen = text.partition("#")
        return read_path(f"{fetch(address, progress)}{'#' * bool(chosen)}{chosen}", progress)
    if "\0" in text:
        raise SourceError("cannot read a path with a null byte")
    return read_path(text, progress)


def _read_timm(spec: str, seed: int, fused: bool) -> FilterBank:
    from huggingface_hub.constants import HF_HUB_CACHE
    from safetensors import SafetensorError

    try:
        return read_timm(spec, seed, fused=fused)
    except SafetensorError as error:
        held = Path(HF_HUB_CACHE) / f"models--timm--{spec}"
        raise SourceError(
            f"the weights of timm:{spec} in the cache are cut short or damaged ({error}); delete "
            f"{held} and run the same command again, which fetches them anew"
        ) from error


def package_files(spec: str) -> list[Path]:
    """Return the model files of an installed distribution, ``DIST`` or ``DIST/FILE``.

    Raises:
        SourceError: the distribution is not installed, or has no such file.
    """
    name, _, wanted = spec.partition("/")
    distribution = find_distribution(name)
    files = model_files(distribution)
    if not files:
        raise SourceError(
            f"the distribution {name!r} is installed but holds no model file; "
            "`keyfilters sources` lists those that do"
        )
    if wanted:
        matching = [p for p in files if p.as_posix().endswith(f"/{wanted}")]
        if not matching:
            raise SourceError(
                f"{name!r} has no model file {wanted!r}{nearest(wanted, [p.name for p in files])}"
            )
        files = matching
    return files


def _what_was_seen(sources: Sequence[Any], bank: FilterBank) -> str:
    named = (str, PathLike)
    names = ", ".join(str(s) if isinstance(s, named) else type(s).__name__ for s in sources)
    counts = Counter(reason for _, reason in bank.skipped)
    seen = "; ".join(f"{n} × {reason}" for reason, n in counts.most_common(6)) or "no convolution"
    return f"no depthwise filters in {names}; seen instead: {seen}"
