"""Fetching a model repository of the Hugging Face hub, or finding it in the cache."""

from __future__ import annotations

from pathlib import Path

from keyfilters.errors import SourceError
from keyfilters.sources.folders import INDEX, model_files_in

__all__ = ["download"]

# One copy of the weights is enough; the formats are tried in this order.
FORMATS = (
    *(".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".onnx", ".tflite", ".keras", ".h5"),
    *(".msgpack", ".npz", ".mlmodel", ".pkl"),
)


def download(repo: str) -> Path:
    """Fetch one model repository of the hub into its cache and return the folder.

    Where the hub cannot be reached, what the cache holds is returned if it is complete.

    Args:
        repo: ``ORG/NAME[@REVISION]``.

    Raises:
        SourceError: there is no such repository, it can neither be reached nor is it in the cache,
            or it holds no weights.
    """
    import huggingface_hub
    from huggingface_hub import errors

    repo, _, revision = repo.partition("@")
    # OSError, the client's own errors, and those of its transport, which changes with its version.
    failures = (OSError, RuntimeError, errors.HFValidationError, *errors.HfHubHTTPError.__bases__)
    try:
        files = huggingface_hub.list_repo_files(repo, revision=revision or None)
        formats = [suffix for suffix in FORMATS if any(f.endswith(suffix) for f in files)]
        if not formats:
            raise SourceError(f"hf-hub:{repo} holds no model file, only {', '.join(files[:8])}")
        patterns = ["config.json", f"*{formats[0]}"]
        patterns += [f"*{INDEX}"] * any(f.endswith(f"{formats[0]}{INDEX}") for f in files)
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision or None, allow_patterns=patterns
        )
    except failures as error:
        reason = next((x for x in str(error).splitlines() if x.strip()), type(error).__name__)
        held = _cached(repo, revision or None)
        if held is None:
            raise SourceError(f"hf-hub:{repo} cannot be fetched: {reason}") from error
        try:
            found = model_files_in(held)
        except SourceError as lack:
            raise SourceError(f"hf-hub:{repo} cannot be fetched: {reason}; {lack}") from error
        if missing := [name for x in found for name in x.missing]:
            what = f"its copy in the cache lacks {missing[0]}"
            raise SourceError(f"hf-hub:{repo} cannot be fetched: {reason}; {what}") from error
        return held
    return Path(folder)


def _cached(repo: str, revision: str | None) -> Path | None:
    """Return the folder of the cache that holds a revision, None if there is none."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True)
        )
    except (OSError, RuntimeError, ValueError, TypeError):
        return None
