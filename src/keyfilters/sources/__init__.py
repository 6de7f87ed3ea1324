"""Reading depthwise filters from modules, files, packages and hubs: `read` picks the reader."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyfilters.bank import FilterBank
from keyfilters.errors import NoFiltersError, SourceError, nearest
from keyfilters.sources.checkpoints import read_pickle, read_safetensors
from keyfilters.sources.modules import is_module, read_module
from keyfilters.sources.onnx_files import read_onnx
from keyfilters.sources.packages import find_distribution, model_files
from keyfilters.sources.statedicts import read_state_dict
from keyfilters.sources.tflite_files import read_tflite
from keyfilters.sources.timm_models import download, is_timm_folder, read_timm, read_timm_folder

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
    ".onnx": read_onnx,
    ".tflite": read_tflite,
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
            - ``"timm:NAME"``, ``"timm:NAME?pretrained=false"`` (an untrained control);
            - ``"hf-hub:ORG/REPO"``, also with ``@REVISION``;
            - ``"package:DIST"`` or ``"package:DIST/FILE"``: model files inside an installed Python
              distribution;
            - a file: ``.safetensors``, ``.pth``, ``.pt``, ``.ckpt``, ``.bin``, ``.onnx``,
              ``.tflite``, or a bank that `FilterBank.save` wrote;
            - a folder of such files.
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
        return _read_files(package_files(rest), progress)
    progress(fspath(source))
    if scheme == "timm":
        return read_timm(rest, seed, fused=fused)
    if scheme == "hf-hub":
        folder = download(rest)
        return _read_folder(folder, progress, model=rest)
    return _read_path(Path(source), progress)


_EXAMPLES = {
    "timm": "timm:convnext_tiny",
    "hf-hub": "hf-hub:timm/convnext_tiny.fb_in1k",
    "package": "package:rapidocr",
}


def _read_path(path: Path, progress: Callable[[str], None]) -> FilterBank:
    if path.is_dir():
        return _read_folder(path, progress)
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, beside)
        if not path.suffix and not hint and path.parent == Path():
            hint = f"; for a model of timm type: timm:{path}"
        raise SourceError(f"there is no file {path}{hint}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise SourceError(f"cannot read {path}; the formats known are {', '.join(READERS)}")
    return reader(path, _model_name(path))


def _read_folder(
    folder: Path, progress: Callable[[str], None], model: str | None = None
) -> FilterBank:
    if is_timm_folder(folder):
        return read_timm_folder(folder, model or folder.resolve().name)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in READERS and p.is_file())
    if not files:
        raise SourceError(f"no model file in {folder}; the formats known are {', '.join(READERS)}")
    return _read_files(files, progress)


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


def _read_files(files: list[Path], progress: Callable[[str], None]) -> FilterBank:
    """Read files into one bank; one that cannot be read is noted, unless it is the only one."""
    bank = FilterBank([])
    for path in files:
        progress(path.name)
        try:
            bank = bank + READERS[path.suffix.lower()](path, _model_name(path))
        except SourceError as error:
            if len(files) == 1:
                raise
            bank.skipped.append((path.name, f"unreadable: {error}"))
    return bank


def _model_name(path: Path) -> str:
    """Name a model by its file, without torch.hub's hash, or by its folder if files say nothing."""
    if path.stem in ("model", "pytorch_model", "weights", "best", "last", "checkpoint"):
        return path.resolve().parent.name
    return re.sub(r"-[0-9a-f]{8}$", "", path.stem)


def _what_was_seen(sources: Sequence[Any], bank: FilterBank) -> str:
    names = ", ".join(s if isinstance(s, str) else type(s).__name__ for s in sources)
    counts = Counter(reason for _, reason in bank.skipped)
    seen = "; ".join(f"{n} × {reason}" for reason, n in counts.most_common(6)) or "no convolution"
    return f"no depthwise filters in {names}; seen instead: {seen}"
