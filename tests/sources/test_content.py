"""Files that lie beside a model, that are too large, empty, or that may not be opened."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import NoFiltersError, SourceError
from tests.sources.tiny_models import FILTERS, ncnn, openvino, tfjs_layers


def cached(folder: Path, model: Path, blobs: Path) -> Path:
    """Lay the files of a model out as a hub's cache does, with links to blobs."""
    snapshot = folder / "models--org--net" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    blobs.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(sorted(model.parent.glob("net.*"))):
        shutil.move(file, blobs / f"{number}")
        (snapshot / file.name).symlink_to(blobs / f"{number}")
    return snapshot / model.name


@pytest.mark.parametrize("write", [ncnn, openvino])
def test_links_lead_into_the_blobs_of_their_own_cache(tmp_path: Path, write: Any) -> None:
    model = cached(tmp_path, write(tmp_path), tmp_path / "models--org--net" / "blobs")
    [layer] = kf.read(model).layers
    np.testing.assert_array_equal(layer.weight, FILTERS)


@pytest.mark.parametrize("place", ["elsewhere", "models--org--other/blobs"])
def test_links_that_lead_elsewhere_are_refused(tmp_path: Path, place: str) -> None:
    model = cached(tmp_path, ncnn(tmp_path), tmp_path / place)
    with pytest.raises(SourceError, match="link"):
        kf.read(model)


@pytest.mark.parametrize("named", ["/etc/passwd", "../net.bin", "a/../../net.bin", "C:\\net.bin"])
def test_files_outside_the_folder_are_refused(tmp_path: Path, named: str) -> None:
    path = tfjs_layers(tmp_path)
    text = path.read_text()
    [weights] = [x.name for x in tmp_path.iterdir() if x != path and x.name in text]
    path.write_text(text.replace(weights, named.replace("\\", "\\\\")))
    with pytest.raises(SourceError, match="outside"):
        kf.read(path)


def test_empty_weights_are_those_of_a_model_without_any(tmp_path: Path) -> None:
    (tmp_path / "net.param").write_text("7767517\n1 2\nReLU relu 1 1 x y\n")
    (tmp_path / "net.bin").write_bytes(b"")
    with pytest.raises(NoFiltersError):
        kf.read(tmp_path / "net.param")


@pytest.mark.parametrize("name", ["net.safetensors.index.json", "net.json"])
def test_a_text_far_too_large_is_not_loaded(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(
        b'{"weight_map": {"weights": 1, "paths": 1, "weightsManifest": 1}}'.ljust(4096)
    )
    with path.open("r+b") as file:
        file.truncate(2**28 + 1)  # what is added takes no place on the disk
    with pytest.raises(SourceError, match="MB"):
        kf.read(path)


def test_lists_that_lie_in_each_other_too_deep(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors.index.json"
    path.write_text('{"weight_map": ' + "[" * 200_000)
    with pytest.raises(SourceError, match="index"):
        kf.read(path)


def test_a_file_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"{}")
    opened = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:  # who runs the tests may open all
        if path.name == "net.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    for source in (tmp_path / "net.safetensors", tmp_path):
        with pytest.raises(SourceError, match="Permission denied"):
            kf.read(source)
