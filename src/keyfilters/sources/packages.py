"""Finding the model files inside installed Python distributions."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from keyfilters.errors import SourceError, nearest
from keyfilters.sources.content import Content
from keyfilters.sources.folders import STRONG
from keyfilters.sources.formats import recognise

__all__ = ["find_distribution", "installed_model_files", "model_files"]

DEVELOPERS = ("bench", "dev", "docs")  # extras that are not for users
# Endings that other files bear too, so that the bytes decide.
CONTENT = (".pb", ".weights", ".param", ".xml", ".bin")


def find_distribution(name: str) -> metadata.Distribution:
    """Find an installed distribution by its own or its import name, with ``-``, ``_`` or ``.``.

    Raises:
        SourceError: nothing of that name is installed.
    """
    try:
        return metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        pass
    wanted = _normal(name)
    for import_name, owners in metadata.packages_distributions().items():
        if _normal(import_name) == wanted:
            return metadata.distribution(owners[0])
    extra = _extra_with(wanted)
    command = f"pip install 'keyfilters[{extra}]'" if extra else f"pip install {name}"
    installed = [d.metadata["Name"] for d in metadata.distributions() if d.metadata["Name"]]
    near = nearest(name, installed)
    advice = "" if near and not extra else f"; to install it type: {command}"  # not a misspelt one
    raise SourceError(f"no installed distribution is called {name!r}{near}{advice}")


def _extra_with(name: str) -> str:
    """Return the extra of keyfilters that installs a distribution, or nothing."""
    try:
        listed = metadata.requires("keyfilters") or []
    except metadata.PackageNotFoundError:  # run from its source
        return ""
    for line in listed:
        found = re.fullmatch(r"([\w.-]+)[^;]*;.*extra == ['\"]([\w-]+)['\"].*", line)
        if found and _normal(found[1]) == name and found[2] not in DEVELOPERS:
            return found[2]
    return ""


def model_files(distribution: metadata.Distribution) -> list[Path]:
    """List the model files of a distribution, sorted by path."""
    listed = distribution.files or []
    named = [x for x in listed if str(x).lower().endswith(STRONG + CONTENT)]
    paths = {Path(str(distribution.locate_file(file))) for file in named}
    return sorted(p for p in paths if p.is_file() and not _is_path_file(p) and _is_model(p))


def _is_model(path: Path) -> bool:
    """Whether a file is a model: of some endings every file, of others by its bytes."""
    kind = recognise(path)
    if kind is not None and kind.name == "Keras":  # HDF5 holds all sorts of data
        content = Content(path)
        return any(content.holds(x) for x in (b"layer_names", b"model_config", b"vars")) or bool(
            content.names
        )
    if path.suffix.lower() in CONTENT:
        return kind is not None
    return kind is not None or not path.name.lower().endswith((".bin", ".index"))


def installed_model_files() -> dict[str, list[Path]]:
    """List the model files of every installed distribution that has some."""
    found = {d.metadata["Name"]: model_files(d) for d in metadata.distributions()}
    return {name: files for name, files in sorted(found.items()) if name and files}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_path_file(path: Path) -> bool:
    """Tell Python's own ``.pth`` files (lines of sys.path) from checkpoints."""
    return path.suffix == ".pth" and path.parent.name in ("site-packages", "dist-packages")
