"""Replacing the depthwise filters inside a model file: the same format out, all else as it was."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn

from keyfilters.bank import FORMAT
from keyfilters.errors import KeyFiltersError, SourceError, mend_of, shown, why_unwritten
from keyfilters.files import move_whole, typed_path, unfinished_folder
from keyfilters.passes import first_line
from keyfilters.sources.checkpoints import load_pickle, read_safetensors
from keyfilters.sources.folders import format_of
from keyfilters.sources.formats import READERS, companions
from keyfilters.sources.statedicts import WRAPPERS, _holds_tensors, unwrap
from keyfilters.sources.timm_models import load_timm
from keyfilters.surgery.finder import Opened
from keyfilters.surgery.key_choice import Keys
from keyfilters.surgery.onnx_files import open_onnx
from keyfilters.surgery.replace import replace_targets_
from keyfilters.surgery.stored_weights import open_stored
from keyfilters.surgery.targets import all_targets, choose_targets, stored_targets

__all__ = ["load_into", "replace_in_file"]


def replace_in_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    keys: Keys,
    *,
    layers: Sequence[str] | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Write a copy of a model file whose depthwise filters are their nearest ``a · key + b``.

    All other tensors keep their bits and every weight its dtype. The target is written at the end,
    so that a failure leaves what was there. Missing folders are created.

    - ``.safetensors``: the metadata is kept.
    - ``.pth``, ``.pt``, ``.ckpt``, ``.bin``, ``.pth.tar``: the whole structure is kept, in
      PyTorch's zip format with tensors on the CPU. Of several sets of weights the one that
      `kf.read` reads is replaced; the report names the others, which stay as they are. A first
      layer that could be a convolution of a one-channel image is left alone, as in a state dict,
      unless `layers` names it.
    - ``.onnx``: `keyfilters.surgery.onnx_files.open_onnx` lists what is left alone. External data
      go to ``TARGET.data`` beside the target.
    - ``.tflite``, ``.h5``, ``.hdf5``, ``.weights.h5``, ``.keras``, ``.xml``: weights stored as
      floats; see `keyfilters.surgery.stored_weights.open_stored`. All other bytes stay, except for
      datasets in chunks and archives, which are packed anew. The constants of ``NAME.xml`` go to
      ``NAME.bin`` beside it.

    Args:
        source: the model file.
        target: where to write, with the same suffix; a file that is there is replaced.
        keys: as for `replace_filters_`.
        layers: names or patterns of those to replace; None replaces all that have keys.
        overwrite: whether the target may be the source itself.

    Returns:
        The report of `replace_filters_`.

    Raises:
        SourceError: the source is missing, damaged, refused or no model; nothing is written.
        KeyFiltersError: its format or the target's is not written, the target is the source, or as
            `replace_filters_`; nothing is written.

    >>> import tempfile
    >>> from keyfilters.keyset import KeySet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = {"dw.weight": torch.ones(4, 1, 3, 3)}
    ...     torch.save({"epoch": 3, "model": model}, folder + "/a.pth")
    ...     keys = KeySet.published("lindeberg2026-B", size=3)
    ...     report = replace_in_file(folder + "/a.pth", folder + "/b.pth", keys, layers=["dw"])
    ...     torch.load(folder + "/b.pth")["epoch"]
    3
    """
    source, target = typed_path(source), typed_path(target)
    found, save = _opener(source, target, overwrite)(source)
    targets, left = choose_targets(found, layers)
    report = replace_targets_(targets, left, keys)
    _write(target, save, set(report["layer"][report["left"] == ""]))
    return report


def load_into(path: Path, architecture: str) -> nn.Module:
    """Build the timm model ``timm:NAME`` and load a checkpoint file into it.

    Raises:
        KeyFiltersError: no such model or file, or the weights of another architecture.
    """
    name = architecture.removeprefix("timm:").partition("?")[0]
    if name == architecture:
        raise KeyFiltersError(f"cannot build {architecture!r}; type timm:NAME")
    suffix = format_of(path, OPENERS)
    if suffix not in (".safetensors", *PICKLES) or not path.is_file():
        raise SourceError(f"{path} is no file of {', '.join(['.safetensors', *PICKLES])}")
    model, _ = load_timm(f"{name}?pretrained=false")
    tensors, _ = unwrap(load_pickle(path) if suffix in PICKLES else _safetensors(path)[0])
    head = tensors.get(f"{getattr(model, 'pretrained_cfg', {}).get('classifier')}.weight")
    if head is not None and len(head) != getattr(model, "num_classes", None):
        cast(Any, model).reset_classifier(len(head))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise KeyFiltersError(f"{path} does not fit {architecture}: {reason}") from error
    return model


def _write(
    target: Path, save: Callable[[Path, Collection[str]], None], written: Collection[str]
) -> None:
    """Write a model and what lies beside it, or leave files and folders as they were."""
    made: list[Path] = []
    try:
        made += [x for x in (target.parent, *target.parent.parents) if not x.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(target.parent) as new:
            save(new / target.name, written)
            # The model comes last: it must never stand beside data that is not its own.
            files = sorted(new.iterdir(), key=lambda file: file.name == target.name)
            move_whole(files, target.parent)
    except BaseException as error:
        for empty in made:
            with suppress(OSError):  # another process may have written to it
                empty.rmdir()
        if isinstance(error, KeyFiltersError) or not isinstance(error, Exception):
            raise
        reason = why_unwritten(error) or first_line(error)
        raise KeyFiltersError(
            f"cannot write {shown(target)}: {reason}; what was there is unchanged; {mend_of(error)}"
        ) from error


def _opener(source: Path, target: Path, overwrite: bool) -> Callable[[Path], Opened]:
    """Return what opens the source, once it is clear that the target may be written."""
    suffix = format_of(source, OPENERS)
    if suffix is None:
        known = f"the formats written are {', '.join(OPENERS)}"
        raise KeyFiltersError(f"cannot replace filters in {source}; {known}")
    if format_of(target, OPENERS) != suffix:
        raise KeyFiltersError(
            f"the format stays the same, but {target} does not end in {suffix}; "
            f"type {target.with_suffix(suffix)}"
        )
    if not source.is_file():
        raise SourceError(f"there is no file {source}")
    if target.is_dir():
        raise KeyFiltersError(f"{target} is a folder; name a file, such as {target / source.name}")
    if target.exists() and target.samefile(source) and not overwrite:
        raise KeyFiltersError(
            f"{target} is the source itself; name another file, or type overwrite=True"
        )
    for other in companions(target, READERS[suffix]):
        if other.exists() and not target.exists():
            raise KeyFiltersError(f"{other} would be overwritten; move it, or name another target")
    return OPENERS[suffix]


def _open_safetensors(path: Path) -> Opened:
    from safetensors.torch import save_file

    bank = read_safetensors(path, path.stem)  # says what is wrong with a damaged file
    tensors, metadata = _safetensors(path)
    if (metadata or {}).get("format") == FORMAT:
        raise SourceError(
            f"{path} is a filter bank that keyfilters saved, and no model; replace the filters of "
            "the model that it was read from"
        )

    def save(target: Path, written: Collection[str]) -> None:
        save_file(tensors, target, metadata=metadata)

    return stored_targets(unwrap(tensors)[0], bank, path.stem), save


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata()
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} is not a readable safetensors file: {error}") from error


def _open_pickle(path: Path) -> Opened:
    checkpoint = load_pickle(path)
    _part_(checkpoint)
    targets = all_targets(checkpoint)

    def save(target: Path, written: Collection[str]) -> None:
        with target.open("wb") as file:  # PyTorch leaves a file open that it cannot write
            torch.save(checkpoint, file)

    return targets, save


def _part_(checkpoint: Any) -> None:
    """Give the set of weights that `unwrap` reads memory of its own, in place."""
    inside = checkpoint
    while held := next(
        (x for x in WRAPPERS if isinstance(inside.get(x), Mapping) and _holds_tensors(inside[x])),
        None,
    ):
        parent, key, inside = inside, held, inside[held]
    if inside is not checkpoint:
        parent[key] = copy.deepcopy(inside)  # weights shared inside the set stay shared


PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pth.tar", ".pt.tar")
OPENERS: dict[str, Callable[[Path], Opened]] = {
    ".safetensors": _open_safetensors,
    **dict.fromkeys(PICKLES, _open_pickle),
    ".onnx": open_onnx,
    **dict.fromkeys((".tflite", ".h5", ".hdf5", ".keras", ".xml"), open_stored),
}
