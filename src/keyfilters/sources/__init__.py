"""Reading depthwise filters from modules, files, packages and hubs: `read` picks the reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from keyfilters.bank import FilterBank
from keyfilters.errors import KeyFiltersError, NoFiltersError, SourceError, nearest
from keyfilters.sources.checkpoints import read_pickle, read_safetensors, read_shards
from keyfilters.sources.folders import (
    INDEX,
    SHARD,
    ModelFiles,
    format_of,
    group_files,
    model_files_in,
    model_name,
    read_index,
    repeated,
    repository,
    snapshots,
)
from keyfilters.sources.hub import download
from keyfilters.sources.modules import is_module, read_module
from keyfilters.sources.onnx_files import read_onnx
from keyfilters.sources.packages import find_distribution, model_files
from keyfilters.sources.statedicts import read_state_dict
from keyfilters.sources.tflite_files import read_tflite
from keyfilters.sources.timm_models import is_timm_folder, read_timm, read_timm_folder
from keyfilters.threads import one_thread_if_forked

if TYPE_CHECKING:
    from torch import nn

__all__ = ["READERS", "join", "package_files", "read", "read_one"]

# One reader a file format: (path, name of the model) -> bank.
READERS: dict[str, Callable[[Path, str], FilterBank]] = {
    ".safetensors": read_safetensors,
    ".pth": read_pickle,
    ".pt": read_pickle,
    ".ckpt": read_pickle,
    ".bin": read_pickle,
    ".pth.tar": read_pickle,  # torch.save's files, which training scripts give this name
    ".pt.tar": read_pickle,
    ".onnx": read_onnx,
    ".tflite": read_tflite,
}
FORMATS = tuple(READERS)


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
            - ``"timm:NAME"``, ``"timm:NAME?pretrained=false"`` (an untrained control);
            - ``"hf-hub:ORG/REPO"``, also with ``@REVISION``;
            - ``"package:DIST"`` or ``"package:DIST/FILE"``: model files inside an installed Python
              distribution;
            - a file: ``.safetensors``, ``.pth``, ``.pt``, ``.ckpt``, ``.bin``, ``.pth.tar``,
              ``.onnx``, ``.tflite``, the index of a model in several files
              (``.safetensors.index.json``), or a bank that `FilterBank.save` wrote;
            - a folder of such files, also a hub's cache. A model in several files is read as one;
              the same model in two formats is counted once.
        seed: initialises models that are read without pretrained weights.
        progress: called with the name of every source or file before it is read.
        fused: whether to read of modules and timm models the kernels that re-parameterised blocks
            (MobileOne, RepVGG, …) fuse into, in place of their branches.

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
    scheme, _, rest = fspath(source).partition(":")
    if scheme in ("timm", "hf-hub", "package") and not rest:
        raise SourceError(f"{scheme}: names nothing; type for example {_EXAMPLES[scheme]}")
    if scheme == "package":
        return _read_files(group_files(package_files(rest), FORMATS), progress)
    progress(fspath(source))
    if scheme == "timm":
        return _read_timm(rest, seed, fused)
    if scheme == "hf-hub":
        return _read_folder(download(rest), progress, model=rest)
    return _read_path(Path(source), progress)


_EXAMPLES = {
    "timm": "timm:convnext_tiny",
    "hf-hub": "hf-hub:timm/convnext_tiny.fb_in1k",
    "package": "package:rapidocr",
}


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


def _read_path(path: Path, progress: Callable[[str], None]) -> FilterBank:
    if path.is_dir():
        return _read_folder(path, progress)
    if path.is_symlink() and not path.exists():
        raise SourceError(f"{path} is a link to a file that is not there; fetch the file again")
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, beside)
        if not path.suffix and not hint and path.parent == Path():
            hint = f"; for a model of timm type: timm:{path}"
        raise SourceError(f"there is no file {path}{hint}")
    if path.name.endswith(INDEX):
        return _read_model(read_index(path, FORMATS))
    kind = format_of(path, FORMATS)
    if kind is None:
        raise SourceError(f"cannot read {path}; the formats known are {', '.join(READERS)}")
    bank = _read_model(ModelFiles(path.name, kind, (path,)))
    if shard := SHARD.fullmatch(path.name):
        part = f"part {int(shard['part'])} of {int(shard['count'])} of a model; the others were not"
        bank.skipped.append((path.name, f"{part} read: give the folder to read them all"))
    return bank


def _read_folder(
    folder: Path, progress: Callable[[str], None], model: str | None = None
) -> FilterBank:
    for root in snapshots(folder):
        if is_timm_folder(root) and [root] == snapshots(folder):
            with torch.random.fork_rng(devices=[]):  # drawn, and then overwritten
                return read_timm_folder(root, model or repository(root) or root.resolve().name)
    found = model_files_in(folder, FORMATS)
    alone = {x.stem for x in found} == {found[0].stem}
    return _read_files(found, progress, model if alone else None)


def package_files(spec: str) -> list[Path]:
    """Return the model files of an installed distribution, ``DIST`` or ``DIST/FILE``.

    Raises:
        SourceError: the distribution is not installed, or has no such file.
    """
    name, _, wanted = spec.partition("/")
    distribution = find_distribution(name)
    files = model_files(distribution, frozenset(READERS))
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


def _read_files(
    found: Sequence[ModelFiles], progress: Callable[[str], None], model: str | None = None
) -> FilterBank:
    """Read models into one bank; one that cannot be read is noted, unless it is the only one."""
    bank = FilterBank([])
    known: list[tuple[ModelFiles, FilterBank]] = []
    for files in found:
        progress(files.label)
        try:
            one = _read_model(files, model)
        except SourceError as error:
            if len(found) == 1:
                raise
            bank.skipped.append((files.label, f"unreadable: {error}"))
            continue
        if one.layers and (earlier := repeated(files, one, known)):
            bank.skipped.append((files.label, f"the same model as {earlier}, counted once"))
            continue
        known.append((files, one))
        bank = bank + one
    return bank


def _read_model(files: ModelFiles, model: str | None = None) -> FilterBank:
    """Read the files of one model; whatever a format's library raises becomes one sentence."""
    path = files.paths[0]
    model = model or model_name(path.parent / files.label)
    if files.missing:
        raise SourceError(
            f"{path.parent / files.label} lacks {len(files.missing)} of its "
            f"{len(files.missing) + len(files.paths)} parts, such as {files.missing[0]}; put all "
            "of them into one folder"
        )
    try:
        if len(files.paths) > 1:
            return read_shards(files.paths, model)
        return READERS[files.format](path, model)
    except KeyFiltersError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(
            f"{path} cannot be read ({type(error).__name__}: {reason}); fetch or write it again"
        ) from error


def _what_was_seen(sources: Sequence[Any], bank: FilterBank) -> str:
    names = ", ".join(s if isinstance(s, str) else type(s).__name__ for s in sources)
    counts = Counter(reason for _, reason in bank.skipped)
    seen = "; ".join(f"{n} × {reason}" for reason, n in counts.most_common(6)) or "no convolution"
    return f"no depthwise filters in {names}; seen instead: {seen}"
