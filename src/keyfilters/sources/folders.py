"""Which files of a folder are one model: its shards, its formats, and what a hub's cache holds."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keyfilters.bank import FilterBank
from keyfilters.errors import SourceError
from keyfilters.files import typed_path
from keyfilters.sources.archives import is_archive, looks_worth
from keyfilters.sources.content import Content, load_json
from keyfilters.sources.formats import (
    FORMATS,
    READERS,
    Format,
    companions,
    folder_format,
    recognise,
    suffix_format,
)

__all__ = [
    "ModelFiles",
    "format_of",
    "group_files",
    "is_index",
    "model_files_in",
    "model_name",
    "repeated",
    "repository",
    "snapshots",
]

INDEX = ".index.json"
SHARD = re.compile(r"(?P<stem>.+?)[-_.](?P<part>\d{3,6})-of-(?P<count>\d{3,6})(?P<suffix>\.\w+)")
# Names that say nothing of the model, as libraries give them.
UNNAMED = (
    *("model", "pytorch_model", "diffusion_pytorch_model", "weights", "best", "last"),
    *("checkpoint", "model_best", "open_clip_model", "open_clip_pytorch_model", "saved_model"),
    *("inference", "variables", "tf_model", "flax_model", "openvino_model", "model.weights"),
)
# Endings of many other files: what bears them is a model only if its bytes say so.
WEAK = (".json", ".index", ".pkl", ".xml", ".npz", ".npy", ".pb", ".weights", ".param", ".msgpack")
STRONG = tuple(x for x in READERS if x not in WEAK)
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".task")
KNOWN = f"the formats known are {', '.join(dict.fromkeys(x.suffixes[0] for x in FORMATS))}"
VARIANT = re.compile(r"[._-](fp16|fp32|bf16|float16|non_ema|quantized|int8|uint8|q4|bnb4)$")


@dataclass(frozen=True)
class ModelFiles:
    """The file of one model, its shards in order, or the folder that is one model.

    Attributes:
        label: name of the file, or of the set of shards, as it is shown.
        format: its format; None of an archive, and of what is none that is read.
        paths: the files.
        missing: names of shards that are not there.
    """

    label: str
    format: Format | None
    paths: tuple[Path, ...]
    missing: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.paths[0].parent

    @property
    def is_variant(self) -> bool:
        """Whether its name says that it is a rounded or otherwise changed copy of another."""
        return VARIANT.search(self._without_ending) is not None

    @property
    def stem(self) -> str:
        """The name without suffix, number of shards and variant, equal for formats of one model."""
        stem = VARIANT.sub("", self._without_ending)
        return "model" if stem in UNNAMED else stem

    @property
    def _without_ending(self) -> str:
        return self.label.removesuffix(format_of(Path(self.label), READERS) or "")

    @property
    def rank(self) -> tuple[int, int]:
        """How late its format comes where one model lies in several."""
        place = FORMATS.index(self.format) if self.format else len(FORMATS)
        ending = format_of(self.paths[0], READERS)
        return place, list(READERS).index(ending) if ending else len(READERS)


def format_of(path: Path, formats: Iterable[str]) -> str | None:
    """Return the format that the end of a file's name tells, such as ``".pth.tar"``, or None."""
    name = path.name.lower()
    return max((x for x in formats if name.endswith(x)), key=len, default=None)


def model_files_in(folder: Path) -> list[ModelFiles]:
    """Return the models in a folder and in those inside it, folder by folder, best format first.

    Files are recognised by their bytes. A file whose name is that of a model, but whose bytes are
    not, is returned with the format None, so that reading it says what is wrong.

    Raises:
        SourceError: it holds none, a download is not complete, or an index is damaged.
    """
    files = [p for root in snapshots(folder) for p in _walk(root)]
    models = group_files(files)
    if not models:
        raise SourceError(f"no model file in {folder}; {KNOWN}")
    return models


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those inside it; a folder that is one model as itself."""
    if folder_format(root):
        yield root
        return
    for path in sorted(root.iterdir()):
        if path.is_symlink() and not path.exists():
            if format_of(path, READERS):
                raise SourceError(
                    f"{path} is a link to a file that is not there: its download is not complete; "
                    "fetch it again"
                )
        elif path.is_dir():
            if not path.is_symlink():
                yield from _walk(path)
        elif path.is_file():
            yield path


def group_files(files: Sequence[Path]) -> list[ModelFiles]:
    """Recognise files and join the shards of models; see `model_files_in`."""
    groups: dict[tuple[Path, str], ModelFiles] = {}
    taken: set[Path] = set()
    for folder in dict.fromkeys(p.parent for p in files):
        for index in sorted(folder.glob(f"*{INDEX}")):
            one = read_index(index)
            groups[folder, one.label] = one
            taken |= set(one.paths)
    found = {path: folder_format(path) or recognise(path) for path in files if path not in taken}
    for path, kind in found.items():
        taken |= set(companions(path, kind)) if kind else set()
    for path, kind in found.items():
        ending = format_of(path, READERS)
        if path in taken or not (kind or _is_named_as_model(path, ending)):
            continue
        shard = SHARD.fullmatch(path.name)
        label = f"{shard['stem']}{shard['suffix']}" if shard else path.name
        if (path.parent, f"{label} in {shard and shard['count']}") in groups:
            continue
        if shard is None:
            groups[path.parent, label] = ModelFiles(label, kind, (path,))
        else:
            groups[path.parent, f"{label} in {shard['count']}"] = _shards(path, shard, kind)
    return sorted(groups.values(), key=lambda x: (x.folder, x.rank, x.is_variant, x.label))


def _is_named_as_model(path: Path, ending: str | None) -> bool:
    if ending:
        return ending not in WEAK
    return path.suffix.lower() in ARCHIVES and is_archive(path) and looks_worth(path, STRONG)


def _shards(path: Path, shard: re.Match[str], kind: Format | None) -> ModelFiles:
    width, before = len(shard["part"]), path.name[: shard.start("part")]
    after = path.name[shard.end("part") :]
    names = [f"{before}{i:0{width}d}{after}" for i in range(1, min(int(shard["count"]), 9999) + 1)]
    there = tuple(path.parent / name for name in names if (path.parent / name).is_file())
    missing = tuple(name for name in names if path.parent / name not in there)
    return ModelFiles(f"{shard['stem']}{shard['suffix']}", kind, there or (path,), missing)


def is_index(path: Path) -> bool:
    """Whether a file is an index of shards, by its name or its content."""
    if path.name.endswith(INDEX):
        return True
    content = Content(path)
    return content.is_json and content.holds(b'"weight_map"')


def read_index(path: Path) -> ModelFiles:
    """Return the shards that an index such as ``model.safetensors.index.json`` names.

    Raises:
        SourceError: it is damaged, or names no file of a known format in its own folder.
    """
    try:
        named = load_json(path)["weight_map"].values()
        names = sorted(set(map(str, named)))  # weights are listed by name, not in order
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SourceError(f"{path} is not a readable index of shards: {error!r}") from error
    label = path.name[: -len(INDEX)] if path.name.endswith(INDEX) else path.name
    if any(Path(name).name != name for name in names) or not names:
        raise SourceError(
            f"{path} is not a readable index of shards: expected names of files in its own folder, "
            f"got {', '.join(names[:4]) or 'none'}"
        )
    there = tuple(x for name in names if (x := typed_path(path.parent / name)).is_file())
    missing = tuple(name for name in names if path.parent / name not in there)
    if not there:
        raise SourceError(f"{path} names {', '.join(missing[:4])}, none of which is beside it")
    kinds = {recognise(x) or suffix_format(x) for x in there}
    if len(kinds) != 1 or None in kinds:
        raise SourceError(f"{path} is not a readable index of shards: its files have no one format")
    return ModelFiles(label, kinds.pop(), there, missing)


def model_name(path: Path) -> str:
    """Name a model by its file, without torch.hub's hash; by its folder if that says nothing.

    What a hub's cache holds is named by its repository. Links are not followed: they lead to files
    named by their hash.

    >>> model_name(Path("hub/models--org--net/snapshots/0a1b/model.safetensors"))
    'org/net'
    >>> model_name(Path("net-0123abcd.pth"))
    'net'
    """
    repo, stem = repository(path), path.name
    stem = re.sub(r"(\.index\.json|\.tar)$", "", stem, flags=re.I)
    if shard := SHARD.fullmatch(stem):
        stem = shard["stem"] + shard["suffix"]
    stem = Path(stem).stem
    if VARIANT.sub("", stem) in UNNAMED:
        return repo or path.absolute().parent.name
    stem = re.sub(r"-[0-9a-f]{8}$", "", stem)
    return f"{repo}/{stem}" if repo else stem


def repository(path: Path) -> str:
    """Return the repository ``ORG/NAME`` in whose cache a path lies, or the empty string."""
    held = [x for x in path.absolute().parts if x.startswith("models--")]
    return held[-1].removeprefix("models--").replace("--", "/") if held else ""


def snapshots(folder: Path) -> list[Path]:
    """Return what to read of a hub's cache: of every repository the revision that is its main one.

    Args:
        folder: of one repository (``models--ORG--NAME``), of a whole cache, or any other, which is
            returned as it is.

    Raises:
        SourceError: a repository has no snapshot.
    """
    if folder.name.startswith("models--") and not (folder / "snapshots").is_dir():
        raise SourceError(f"{folder} holds no snapshot: its download is not complete")
    if (folder / "snapshots").is_dir() and folder.name.startswith("models--"):
        held = sorted((folder / "snapshots").iterdir(), key=lambda p: (p.stat().st_mtime, p.name))
        if not held:
            raise SourceError(f"{folder} holds no snapshot: its download is not complete")
        try:
            main = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
        except OSError:
            main = held[-1]
        return [main if main in held else held[-1]]
    repositories = sorted(p for p in folder.glob("models--*") if (p / "snapshots").is_dir())
    return [root for p in repositories for root in snapshots(p)] or [folder]


def repeated(
    one: ModelFiles, bank: FilterBank, others: Iterable[tuple[ModelFiles, FilterBank]]
) -> str | None:
    """Return the label of an earlier file that holds the same model, None if there is none.

    Those are files of one folder with the very same filters, and files of one name in two formats,
    one of which may be rounded, or rescaled where an exporter folded BatchNorm.
    """
    for other, known in others:
        near = one.folder == other.folder
        if near and _fingerprint(bank) == _fingerprint(known):
            return other.label
        near |= one.folder.parent == other.folder or one.folder == other.folder.parent
        named = one.stem == other.stem and one.label != other.label
        if near and named and bank.layers and bank.sizes == known.sizes and _alike(bank, known):
            return other.label
    return None


def _fingerprint(bank: FilterBank) -> Counter[str]:
    return Counter(hashlib.sha256(x.weight.tobytes()).hexdigest() for x in bank.layers)


def _alike(bank: FilterBank, other: FilterBank, block: int = 1024) -> bool:
    """Tell whether nearly every filter has its like, up to scale, in the other bank."""
    for size in bank.sizes:
        one, two = (b.stack(size)[0].reshape(-1, size[0] * size[1]) for b in (bank, other))
        one, two = (
            x / np.maximum(np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True), 1e-30)
            for x in (one, two)
        )
        best = [(part @ two.T).max(1) for part in np.split(one, range(block, len(one), block))]
        if (np.concatenate(best) < 0.999).mean() > 0.01:
            return False
    return True
