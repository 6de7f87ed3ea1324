"""Which files beside the one that was named are looked at."""

from pathlib import Path

import pytest

import keyfilters as kf
from keyfilters.errors import SourceError
from keyfilters.sources import paths


def test_only_neighbours_of_the_same_stem_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("notes", "notes-", "notes.old", "other"):
        (tmp_path / name).write_text("nothing of a network")
    seen = []
    recognise = paths.recognise
    monkeypatch.setattr(paths, "recognise", lambda x: seen.append(x.name) or recognise(x))
    with pytest.raises(SourceError, match="no format that is read"):
        kf.read(str(tmp_path / "notes"))
    assert {"notes-", "other"}.isdisjoint(seen)
    assert "notes.old" in seen
