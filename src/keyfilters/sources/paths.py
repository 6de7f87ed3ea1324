"""Reading what lies at a path: a file, a folder, an archive, a pattern, an address."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from glob import glob, has_magic
from pathlib import Path

import torch

from keyfilters.bank import FilterBank
from keyfilters.errors import KeyFiltersError, MissingExtraError, SourceError, nearest, shown
from keyfilters.files import temporary_folder, typed_path
from keyfilters.sources.archives import is_archive, unpack
from keyfilters.sources.checkpoints import read_shards
from keyfilters.sources.content import what_it_is
from keyfilters.sources.folders import (
    KNOWN,
    SHARD,
    ModelFiles,
    group_files,
    is_index,
    model_files_in,
    model_name,
    read_index,
    repeated,
    repository,
    snapshots,
)
from keyfilters.sources.formats import companions, folder_format, recognise, suffix_format
from keyfilters.sources.named_models import is_transformers_folder, read_transformers
from keyfilters.sources.timm_models import is_timm_folder, read_timm_folder

__all__ = ["read_files", "read_folder", "read_path"]

Progress = Callable[[str], None]
DEEPEST = 3  # archives inside each other


def read_path(text: str, progress: Progress) -> FilterBank:
    """Read a file, a folder, or what a pattern matches; ``FILE#SET`` names a set of weights.

    Raises:
        SourceError: it is missing, damaged, refused, or of no format that is read.
    """
    path = typed_path(text)
    try:
        return _read_typed(path, progress)
    except OSError as error:  # a folder that may not be looked into, a disk that fails
        place = f" at {error.filename}" if error.filename else ""
        reason = error.strerror or error
        raise SourceError(f"{shown(path)} cannot be read{place}: {reason}") from error


def _read_typed(path: Path, progress: Progress) -> FilterBank:
    if not path.exists() and "#" in path.name:
        stem, _, chosen = str(path).rpartition("#")
        if Path(stem).exists():
            return _read_existing(Path(stem), progress, chosen)
    if not path.exists() and not path.is_symlink() and has_magic(str(path)):
        matches = [Path(x) for x in sorted(glob(str(path), recursive=True))]  # noqa: PTH207
        if not matches:
            raise SourceError(f"nothing matches {path}")
        files = [x for x in matches if x.is_file()]
        models = group_files(files) if files else []
        for folder in (x for x in matches if x.is_dir()):
            models += model_files_in(folder)
        if not models:
            raise SourceError(f"no model file matches {path}; {KNOWN}")
        return read_files(models, progress)
    return _read_existing(path, progress)


def _read_existing(path: Path, progress: Progress, chosen: str = "") -> FilterBank:
    if path.is_dir():
        return read_folder(path, progress, chosen=chosen)
    if path.is_symlink() and not path.exists():
        raise SourceError(f"{path} is a link to a file that is not there; fetch the file again")
    if not path.exists():
        if (index := path.with_name(f"{path.name}.index")).is_file():  # of TensorFlow
            return _read_existing(index, progress, chosen)
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, beside)
        if not path.suffix and not hint and path.parent == Path():
            hint = f"; for a model of timm type: timm:{path}"
        raise SourceError(f"there is no file {path}{hint}")
    if not path.is_file():
        raise SourceError(f"{path} is no file and no folder")
    if is_index(path):
        return _read_model(read_index(path), progress, chosen=chosen)
    bank = _read_model(ModelFiles(path.name, recognise(path), (path,)), progress, chosen=chosen)
    if shard := SHARD.fullmatch(path.name):
        part = f"part {int(shard['part'])} of {int(shard['count'])} of a model; the others were not"
        bank.skipped.append((path.name, f"{part} read: give the folder to read them all"))
    return bank


def read_folder(
    folder: Path, progress: Progress, model: str | None = None, chosen: str = "", level: int = 0
) -> FilterBank:
    """Read the models in a folder and in those inside it."""
    if kind := folder_format(folder):
        one = ModelFiles(folder.resolve().name, kind, (folder,))
        return _read_model(one, progress, model, chosen)
    for root in snapshots(folder):
        if [root] == snapshots(folder):
            name = model or repository(root) or root.resolve().name
            if is_timm_folder(root):
                with torch.random.fork_rng(devices=[]):  # drawn, and then overwritten
                    return read_timm_folder(root, name)
            if is_transformers_folder(root) and (bank := read_transformers(root, name)):
                return bank
    found = model_files_in(folder)
    alone = {x.stem for x in found} == {found[0].stem}
    return read_files(found, progress, model if alone else None, chosen, level)


def read_files(
    found: Sequence[ModelFiles],
    progress: Progress,
    model: str | None = None,
    chosen: str = "",
    level: int = 0,
) -> FilterBank:
    """Read models into one bank; one that cannot be read is noted, unless it is the only one."""
    bank = FilterBank([])
    known: list[tuple[ModelFiles, FilterBank]] = []
    for files in found:
        progress(files.label)
        try:
            one = _read_model(files, progress, model, chosen, level)
        except SourceError as error:
            if len(found) == 1:
                raise
            bank.skipped.append((files.label, f"unreadable: {error}"))
            continue
        except MissingExtraError as error:
            if len(found) == 1:
                raise
            bank.skipped.append((files.label, str(error)))
            continue
        if one.layers and (earlier := repeated(files, one, known)):
            bank.skipped.append((files.label, f"the same model as {earlier}, counted once"))
            continue
        known.append((files, one))
        bank = bank + one
    return bank


def _read_model(
    files: ModelFiles,
    progress: Progress,
    model: str | None = None,
    chosen: str = "",
    level: int = 0,
) -> FilterBank:
    """Read the files of one model; whatever a format's library raises becomes one sentence."""
    path = files.paths[0]
    model = model or model_name(path if path.is_dir() else path.parent / files.label)
    if files.missing:
        raise SourceError(
            f"{path.parent / files.label} lacks {len(files.missing)} of its "
            f"{len(files.missing) + len(files.paths)} parts, such as {files.missing[0]}; put all "
            "of them into one folder"
        )
    try:
        if len(files.paths) > 1:
            return read_shards(files.paths, model, chosen)
        if files.format is None:
            return _read_unknown(path, model, progress, chosen, level)
        return files.format.read(path, model, chosen)
    except KeyFiltersError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        kind = files.format.name if files.format else "model"
        what = what_it_is(path) if path.is_file() else "it is damaged or not complete"
        raise SourceError(f"{path} is not a readable {kind} file: {what} ({reason})") from error


def _read_unknown(
    path: Path, model: str, progress: Progress, chosen: str, level: int
) -> FilterBank:
    """Read an archive, or the model that a file belongs to; otherwise say what the file is."""
    what = what_it_is(path)
    if "damaged" in what and is_archive(path) and not path.name.lower().endswith((".pth", ".pt")):
        return _read_archive(path, progress, chosen, level)
    stem = path.name.partition(".")[0]
    for other in sorted(path.parent.iterdir()) if path.parent.is_dir() else []:
        if other != path and other.is_file() and other.name.partition(".")[0] == stem:
            kind = recognise(other)
            if kind and path in companions(other, kind):
                return kind.read(other, model, chosen)
    kind = suffix_format(path)
    if kind is not None and "damaged" in what:
        return kind.read(path, model, chosen)
    if kind is not None:
        raise SourceError(f"{path} is not a readable {kind.name} file: {what}")
    unknown = "it is of no format that is read" if "damaged" in what else what
    raise SourceError(f"cannot read {path}: {unknown}; {KNOWN}")


def _read_archive(path: Path, progress: Progress, chosen: str, level: int) -> FilterBank:
    if level >= DEEPEST:
        raise SourceError(f"{path}: archives lie in each other more than {DEEPEST} deep")
    with temporary_folder() as place:
        name = path.name
        while "." in name.strip("."):
            name = name.rpartition(".")[0]
        folder = place / (name or "archive")
        folder.mkdir()
        try:
            skipped = unpack(path, folder)
            bank = read_folder(folder, progress, chosen=chosen, level=level + 1)
        except KeyFiltersError as error:
            text = str(error).replace(f"{folder}/", f"{path.name}/").replace(str(folder), str(path))
            raise SourceError(text) from error
        bank.skipped = [(x, y.replace(f"{folder}/", "")) for x, y in [*bank.skipped, *skipped]]
        return bank
