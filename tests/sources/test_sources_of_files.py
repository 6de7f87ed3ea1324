"""Archives, patterns, addresses, indices, and files that are none: what `read` makes of a path."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import json
import os
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import keyfilters as kf
from keyfilters.errors import MissingExtraError
from keyfilters.sources import archives
from tests.sources.tiny_models import (
    FILTERS,
    STATE,
    Net,
    checkpoint,
    ncnn,
    tf_checkpoint,
    tfjs_layers,
)


def check(source: object) -> kf.FilterBank:
    bank = kf.read(source)  # type: ignore[arg-type]
    np.testing.assert_array_equal(bank.stack(3)[0], FILTERS)
    return bank


def zipped(target: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


def tarred(target: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(target, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return target


def test_archives_are_looked_into(tmp_path: Path) -> None:
    content = checkpoint(tmp_path).read_bytes()
    files = {"readme.txt": b"hello", "inner/net.pth": content}
    for path in (
        zipped(tmp_path / "release.zip", files),
        zipped(tmp_path / "bundle.task", files),
        tarred(tmp_path / "release.tar", files),
        tarred(tmp_path / "release.tar.gz", files, "w:gz"),
        tarred(tmp_path / "release.tbz2", files, "w:bz2"),
    ):
        assert check(path).models == ["net"]
    (tmp_path / "net.pth.gz").write_bytes(gzip.compress(content))
    check(tmp_path / "net.pth.gz")
    nested = {"a.zip": (tmp_path / "release.zip").read_bytes()}
    check(zipped(tmp_path / "twice.zip", nested))


def test_archives_in_a_folder_are_looked_into_if_their_names_promise_models(
    tmp_path: Path,
) -> None:
    content = checkpoint(tmp_path).read_bytes()
    files = {"inner/": b"", "inner/net.pth": content}
    zipped(tmp_path / "a.zip", files)
    tarred(tmp_path / "b.tar.gz", {"inner/net.pth": content}, "w:gz")
    (tmp_path / "c.pth.gz").write_bytes(gzip.compress(content))
    (tmp_path / "cut.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:200])
    (tmp_path / "notes.txt.gz").write_bytes(gzip.compress(b"hello"))
    zipped(tmp_path / "docs.zip", {"readme.txt": b"hello"})
    said = {name: why for name, why in check(tmp_path).skipped if name != "net/pw"}
    assert said.keys() == {"a.zip", "b.tar.gz", "c.pth.gz", "cut.zip"}
    for name, why in said.items():
        assert ("unreadable" if name == "cut.zip" else "same model") in why
    for name in ("a.zip", "b.tar.gz", "c.pth.gz"):
        check(tmp_path / name)


def test_a_damaged_archive_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(checkpoint(tmp_path).read_bytes()))
    content[-8] ^= 1  # of the checksum
    (tmp_path / "net.pth.gz").write_bytes(content)
    with pytest.raises(kf.KeyFiltersError, match="damaged") as error:
        kf.read(tmp_path / "net.pth.gz")
    assert "TMPDIR" not in str(error.value)


def test_archives_in_archives_come_to_an_end(tmp_path: Path) -> None:
    path = tarred(tmp_path / "0.tar", {"net.pth": checkpoint(tmp_path).read_bytes()})
    for level in range(1, 4):
        check(path)
        path = tarred(tmp_path / f"{level}.tar", {path.name: path.read_bytes()})
    with pytest.raises(kf.KeyFiltersError, match="deep"):
        kf.read(path)


def test_companions_inside_an_archive_are_found(tmp_path: Path) -> None:
    ncnn(tmp_path)
    files = {f"m/{x.name}": x.read_bytes() for x in tmp_path.iterdir()}
    check(zipped(tmp_path / "m.zip", files))


@pytest.mark.parametrize("name", ["../out.pth", "/tmp/out.pth", "a/../../out.pth", "..\\out.pth"])
def test_members_never_leave_the_archive(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    content = checkpoint(inside).read_bytes()
    files = {"net.pth": content, name: content}
    for make in (zipped, tarred):
        bank = check(make(inside / "a.bin", files))
        assert any("leads out" in why for _, why in bank.skipped)
    assert not [x for x in tmp_path.rglob("*") if x.name.startswith("out")]


def test_links_in_archives_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.pth"
    torch.save({"dw.weight": torch.ones(9, 1, 5, 5)}, secret)
    path = tarred(tmp_path / "a.tar", {"net.pth": checkpoint(tmp_path).read_bytes()})
    with tarfile.open(path, "a") as archive:
        entry = tarfile.TarInfo("link.pth")
        entry.type, entry.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(entry)
    assert check(path).sizes == {(3, 3): 4}


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FLOOR", 2**16)
    path = zipped(tmp_path / "bomb.zip", {"net.pth": bytes(2**22)})
    with pytest.raises(kf.KeyFiltersError, match="unpacks to more than"):
        kf.read(path)
    monkeypatch.setattr(archives, "MOST_FILES", 3)
    path = zipped(tmp_path / "many.zip", {f"{i}.txt": b"" for i in range(9)})
    with pytest.raises(kf.KeyFiltersError, match="more than 3 files"):
        kf.read(path)


def test_an_archive_without_models_says_so(tmp_path: Path) -> None:
    with pytest.raises(kf.KeyFiltersError, match="no model file"):
        kf.read(zipped(tmp_path / "a.zip", {"readme.txt": b"hello"}))
    with pytest.raises(kf.KeyFiltersError, match="without weights"):
        kf.read(tarred(tmp_path / "a.pth", {"readme.txt": b"hello"}))


def test_patterns_home_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("a", "b"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        weights = {k: v + (run == "b") for k, v in STATE.items()}
        torch.save(weights, tmp_path / "runs" / run / "best.pth")
    assert kf.read(f"{tmp_path}/runs/*/best.pth").models == ["a", "b"]
    assert kf.read(f"{tmp_path}/**/best.pth").models == ["a", "b"]
    assert kf.read(f"{tmp_path}/runs/*").models == ["a", "b"]
    monkeypatch.setenv("HOME", str(tmp_path))
    check("~/runs/a/best.pth")
    check(Path("~/runs/a/best.pth"))
    for pattern in ("runs/*/last.pth", "runs/?.txt"):
        with pytest.raises(kf.KeyFiltersError, match="matches"):
            kf.read(f"{tmp_path}/{pattern}")


def test_a_pattern_that_matches_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a model")
    with pytest.raises(kf.KeyFiltersError, match="no model file"):
        kf.read(f"{tmp_path}/*.txt")


def test_a_set_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(kf.KeyFiltersError, match="no file"):
        kf.read(f"{tmp_path}/net.pth#ema")


def test_a_checkpoint_of_tensorflow_by_the_name_that_it_was_saved_as(tmp_path: Path) -> None:
    tf_checkpoint(tmp_path)
    check(tmp_path / "model.ckpt")


def test_a_model_that_needs_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "msgpack", None)
    (tmp_path / "alone").mkdir()
    for name in ("alone/net.msgpack", "other.msgpack"):
        (tmp_path / name).write_bytes(b"\x81\xa1a\x01")
    with pytest.raises(MissingExtraError, match="flax"):
        kf.read(tmp_path / "alone")
    checkpoint(tmp_path)
    said = {name: why for name, why in check(tmp_path).skipped if name != "net/pw"}
    assert said.keys() == {"net.msgpack", "other.msgpack"}
    assert all("keyfilters[flax]" in why for why in said.values())


@pytest.mark.parametrize("known", [True, False])
def test_a_folder_of_transformers_is_read_as_its_configuration_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Where transformers makes no model of it, names and shapes tell."""

    def from_pretrained(folder: Path, **options: Any) -> Net:
        assert options == {"config": "read", "trust_remote_code": False, "local_files_only": True}
        if not known:
            raise ValueError("an unknown architecture")
        return Net()

    library = ModuleType("transformers")
    library.__spec__ = ModuleSpec("transformers", None)
    configured = SimpleNamespace(from_pretrained=lambda folder, trust_remote_code: "read")
    model = SimpleNamespace(from_pretrained=from_pretrained)
    vars(library).update(AutoConfig=configured, AutoModel=model)
    monkeypatch.setitem(sys.modules, "transformers", library)
    (tmp_path / "config.json").write_text('{"model_type": "net"}')
    save_file(STATE, tmp_path / "model.safetensors")
    [layer] = check(tmp_path).layers
    assert layer.stride == ((2, 2) if known else None) and layer.model == tmp_path.name


def test_an_index_of_any_name(tmp_path: Path) -> None:
    parts = {"x.safetensors": "pw.weight", "y.safetensors": "dw.weight"}
    for name, key in parts.items():
        save_file({key: STATE[key]}, tmp_path / name)
    text = json.dumps({"weight_map": {key: name for name, key in parts.items()}})
    (tmp_path / "index.json").write_text(text)
    check(tmp_path / "index.json")


def test_one_bad_file_in_a_folder_is_named_and_passed_over(tmp_path: Path) -> None:
    content = checkpoint(tmp_path).read_bytes()
    bad = {
        "cut.pth": content[:-100],
        "empty.onnx": b"",
        "pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "page.h5": b"<!DOCTYPE html><html></html>",
        "noise.tflite": bytes(range(256)),
    }
    for name, what in bad.items():
        (tmp_path / name).write_bytes(what)
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    bank = check(tmp_path)
    said = dict(bank.skipped)
    assert bad.keys() <= said.keys() and not {"package.json", "picture.png"} & said.keys()
    for name, word in (
        ("empty.onnx", "empty"),
        ("pointer.safetensors", "Git LFS"),
        ("page.h5", "web page"),
    ):
        assert word in said[name]
        with pytest.raises(kf.KeyFiltersError, match=word):
            kf.read(tmp_path / name)


def test_names_in_a_manifest_stay_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    path = tfjs_layers(folder)
    content = json.loads(path.read_text())
    (folder / "net.bin").rename(tmp_path / "secret.bin")
    for name in ("../secret.bin", str(tmp_path / "secret.bin"), "x/../../secret.bin"):
        content["weightsManifest"][0]["paths"] = [name]
        path.write_text(json.dumps(content))
        with pytest.raises(kf.KeyFiltersError, match="outside its own folder"):
            kf.read(path)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    content["weightsManifest"][0]["paths"] = ["link.bin"]
    path.write_text(json.dumps(content))
    with pytest.raises(kf.KeyFiltersError, match="link out of its own folder"):
        kf.read(path)


# ------------------------------------------------------------------ addresses


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_address_is_fetched_once(
    tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, address = served
    torch.save({"params": STATE, "params_ema": STATE}, folder / "net.pth")
    steps: list[str] = []
    bank = kf.read(f"{address}/net.pth", progress=steps.append)
    assert bank.models == ["net"] and any("MB" in step for step in steps)
    (folder / "net.pth").unlink()
    assert len(kf.read(f"{address}/net.pth#params")) == 4
    held = [x for x in (tmp_path / "cache").rglob("*") if x.is_file()]
    assert [x.name for x in held] == ["net.pth"]
    with pytest.raises(kf.KeyFiltersError, match="cannot be fetched"):
        kf.read(f"{address}/other.pth")


def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for address in ("http://127.0.0.1:9/net.pth", "ftp://host/net.pth", "file:///etc/passwd"):
        with pytest.raises(kf.KeyFiltersError, match="cannot") as error:
            kf.read(address)
        assert "\n" not in str(error.value)
    assert not [x for x in tmp_path.rglob("*") if x.is_file()]


def test_odd_paths_are_refused_in_a_sentence(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.pth"
    os.mkfifo(fifo)
    for source in ("a\0b.pth", fifo, tmp_path / "none" / "x.pth"):
        with pytest.raises(kf.KeyFiltersError):
            kf.read(source)
