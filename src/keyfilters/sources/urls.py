"""Fetching a model file from an address into a cache."""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from keyfilters.errors import KeyFiltersError, SourceError
from keyfilters.files import whole_file
from keyfilters.network import cache_folder, open_address

__all__ = ["fetch"]

CHUNK = 2**20
LARGEST = 2**35
LONGEST = 60  # characters of a file's name in the cache, counted from its end


def fetch(url: str, progress: Callable[[str], None] = lambda text: None) -> Path:
    """Return the file at an address, from the cache where it is there already.

    The cache is ``$XDG_CACHE_HOME/keyfilters``, or ``~/.cache/keyfilters``.

    Args:
        url: with http or https.
        progress: called with the number of megabytes fetched.

    Raises:
        SourceError: the address cannot be reached, answers with an error, or the cache cannot be
            written.
    """
    expected = f"cannot fetch {url}; expected an address with http or https"
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:  # brackets that are no IPv6 address
        raise SourceError(f"{expected} ({error})") from error
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise SourceError(expected)
    name = re.sub(r"[^\w.+-]", "_", urllib.parse.unquote(parts.path).rpartition("/")[2])
    name = name.strip(".")[-LONGEST:] or "model"
    digest = hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()[:16]
    try:
        target = cache_folder() / digest / name
        if not target.is_file():
            with whole_file(target) as unfinished, unfinished.open("wb") as file:
                for chunk in _content(url, name, progress):
                    file.write(chunk)
    except SourceError:
        raise
    except KeyFiltersError as error:
        raise SourceError(
            f"{url} cannot be kept: {error}; XDG_CACHE_HOME names the folder of the cache"
        ) from error
    return target


def _content(url: str, name: str, progress: Callable[[str], None]) -> Iterator[bytes]:
    """Yield the content of an address in pieces."""
    try:
        with open_address(url) as answer:
            total, done = int(answer.headers.get("Content-Length") or 0), 0
            while chunk := answer.read(CHUNK):
                done += len(chunk)
                if done > LARGEST:
                    raise OSError(f"it is larger than {LARGEST // 2**30} GB")
                yield chunk
                of = f" of {total // 2**20}" if total else ""
                progress(f"{name}: {done // 2**20}{of} MB")
            if total and done < total:
                raise OSError(f"the connection ended after {done} of {total} bytes")
    except KeyFiltersError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(error, HTTPError):
            reason = error
            error.close()
        raise SourceError(
            f"{url} cannot be fetched ({reason}); fetch it another way and give the file"
        ) from error
