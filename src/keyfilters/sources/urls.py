"""Fetching a model file from an address into a cache."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from keyfilters.errors import SourceError

__all__ = ["fetch"]

TIMEOUT = 30  # seconds without an answer
CHUNK = 2**20
LARGEST = 2**35


def fetch(url: str, progress: Callable[[str], None] = lambda text: None) -> Path:
    """Return the file at an address, from the cache where it is there already.

    The cache is ``$XDG_CACHE_HOME/keyfilters``, or ``~/.cache/keyfilters``.

    Args:
        url: with http or https.
        progress: called with the number of megabytes fetched.

    Raises:
        SourceError: the address cannot be reached, or answers with an error.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise SourceError(f"cannot fetch {url}; expected an address with http or https")
    name = re.sub(r"[^\w.+-]", "_", urllib.parse.unquote(parts.path).rpartition("/")[2])
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keyfilters"
    target = (
        base
        / hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()[:16]
        / (name.strip(".") or "model")
    )
    if target.is_file():
        return target
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(url, headers={"User-Agent": "keyfilters"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, part.open("wb") as file:
            total, done = int(answer.headers.get("Content-Length") or 0), 0
            while chunk := answer.read(CHUNK):
                done += len(chunk)
                if done > LARGEST:
                    raise OSError(f"it is larger than {LARGEST // 2**30} GB")
                file.write(chunk)
                of = f" of {total // 2**20}" if total else ""
                progress(f"{name}: {done // 2**20}{of} MB")
            if total and done < total:
                raise OSError(f"the connection ended after {done} of {total} bytes")
        part.replace(target)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise SourceError(
            f"{url} cannot be fetched ({reason}); fetch it another way and give the file"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return target
