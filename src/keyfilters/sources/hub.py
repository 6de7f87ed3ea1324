"""Fetching a model repository of the Hugging Face hub, or finding it in the cache."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from keyfilters.errors import KeyFiltersError, SourceError
from keyfilters.files import write_whole
from keyfilters.network import OFFLINE, cache_folder, hub_answers
from keyfilters.sources.folders import INDEX, model_files_in

__all__ = ["download", "note_folder"]

# One copy of the weights is enough; the formats are tried in this order.
FORMATS = (
    *(".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".onnx", ".tflite", ".keras", ".h5"),
    *(".msgpack", ".npz", ".mlmodel", ".pkl"),
)


def download(repo: str) -> Path:
    """Fetch one model repository of the hub into its cache and return the folder.

    What was fetched here before and is still complete is returned without asking the hub; delete it
    from the hub's cache to have it fetched anew. Where the hub does not answer, what the cache
    holds is returned if it is complete.

    Args:
        repo: ``ORG/NAME[@REVISION]``.

    Raises:
        SourceError: there is no such repository, it can neither be reached nor is it in the cache,
            or it holds no weights.
    """
    from huggingface_hub import errors

    note = _note_of(repo)
    if note is not None and (before := _fetched_before(note)) is not None:
        return before
    # OSError, the client's own errors, and those of its transport, which changes with its version.
    failures = (OSError, RuntimeError, errors.HFValidationError, *errors.HfHubHTTPError.__bases__)
    try:
        hub_answers()
        folder = _fetch(repo)
    except failures as error:
        reason = next((x for x in str(error).splitlines() if x.strip()), type(error).__name__)
        return _in_cache(repo, reason, error)
    if note is not None:
        files = sorted(x.relative_to(folder).as_posix() for x in folder.rglob("*") if x.is_file())
        with suppress(KeyFiltersError):  # a cache that cannot be written costs time only
            write_whole(note, json.dumps({"folder": str(folder), "files": files}))
    return folder


def _fetch(repo: str) -> Path:
    """Fetch the weights of a repository in the first of the formats that it has."""
    import huggingface_hub

    name, _, revision = repo.partition("@")
    files = huggingface_hub.list_repo_files(name, revision=revision or None)
    formats = [suffix for suffix in FORMATS if any(f.endswith(suffix) for f in files)]
    if not formats:
        raise SourceError(f"hf-hub:{name} holds no model file, only {', '.join(files[:8])}")
    patterns = ["config.json", f"*{formats[0]}"]
    patterns += [f"*{INDEX}"] * any(f.endswith(f"{formats[0]}{INDEX}") for f in files)
    return Path(
        huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=patterns)
    )


def _in_cache(repo: str, reason: str, error: BaseException) -> Path:
    """Return the folder of the hub's cache that holds a repository, where it is complete."""
    name, _, revision = repo.partition("@")
    failed, held = f"hf-hub:{name} cannot be fetched: {reason}", _cached(name, revision or None)
    if held is None:
        raise SourceError(f"{failed}; {OFFLINE}") from error
    try:
        found = model_files_in(held)
    except SourceError as lack:
        raise SourceError(f"{failed}; {lack}") from error
    if missing := [name for x in found for name in x.missing]:
        raise SourceError(f"{failed}; its copy in the cache lacks {missing[0]}") from error
    return held


def note_folder() -> Path:
    """Return the folder of the notes of what was fetched.

    Raises:
        KeyFiltersError: there is no home folder.
    """
    return cache_folder() / "hub"


def _note_of(repo: str) -> Path | None:
    """Return the file that notes what was fetched of a repository; None without a home folder."""
    from huggingface_hub import constants

    told = f"{constants.ENDPOINT} {constants.HF_HUB_CACHE} {repo}"
    try:
        return note_folder() / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"
    except KeyFiltersError:
        return None


def _fetched_before(note: Path) -> Path | None:
    """Return the folder that a note names, if all of its files are there."""
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        folder, files = Path(told["folder"]), [Path(told["folder"], x) for x in told["files"]]
        return folder if files and all(x.is_file() for x in files) else None
    except (OSError, ValueError, TypeError, LookupError):
        return None


def _cached(repo: str, revision: str | None) -> Path | None:
    """Return the folder of the cache that holds a revision, None if there is none."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True)
        )
    except (OSError, RuntimeError, ValueError, TypeError):
        return None
