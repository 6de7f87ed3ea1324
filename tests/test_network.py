"""No network, or one that does not answer: an error in time that says what to do, or the cache.

No test waits for a limit to pass but those of the limit itself, which is then a fraction of a
second; how long that takes on a busy machine is not measured.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import keyfilters as kf
from keyfilters import network
from keyfilters.network import ask_first, hub_answers, open_address, require_answer, timeout
from keyfilters.pretrained import create_timm
from keyfilters.reproduction import reproduce
from keyfilters.training import Recipe, load_data, make_model
from tests.cli.test_cli import run

DEAD = "http://127.0.0.1:9"  # refused at once
SOURCES = (
    *("timm:convnext_tiny.fb_in1k", "hf-hub:org/net", "torchvision:mobilenet_v2"),
    "https://example.com/net.pth",
)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a socket that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let nothing be found in the caches of this machine, nor asked of its network by chance."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(network, "SILENT", {})
    monkeypatch.setattr(constants, "ENDPOINT", DEAD)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were asked for a sign of life, none of which gives one."""
    found: list[str] = []

    def open_dead(url: str, method: str = "GET") -> Any:
        found.append(url)
        raise TimeoutError("no answer within 5 s")

    monkeypatch.setattr(network, "open_address", open_dead)
    monkeypatch.setattr("keyfilters.sources.urls.open_address", open_dead)
    return found


def test_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEYFILTERS_TIMEOUT", raising=False)
    assert timeout() <= 5
    monkeypatch.setenv("KEYFILTERS_TIMEOUT", "60")
    assert timeout() == 60
    for text in ("none", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("KEYFILTERS_TIMEOUT", text)
        with pytest.raises(kf.KeyFiltersError, match="KEYFILTERS_TIMEOUT"):
            timeout()


def test_whoever_takes_connections_and_stays_silent_is_given_up(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYFILTERS_TIMEOUT", "0.2")
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1.* cannot be reached .*within 0\.2 s"):
        require_answer(silent)
    with pytest.raises(kf.KeyFiltersError, match=r"within 0\.2 s.*KEYFILTERS_TIMEOUT"):
        kf.read(f"{silent}/net.pth")
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    for source in ("hf-hub:org/net", "timm:convnext_tiny.fb_in1k"):
        network.SILENT.clear()
        with pytest.raises(kf.KeyFiltersError, match=r"within 0\.2 s"):
            kf.read(source)


def test_a_name_whose_look_up_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait(600))
    monkeypatch.setenv("KEYFILTERS_TIMEOUT", "0.2")
    try:
        with pytest.raises(ConnectionError, match=r"within 0\.2 s"):
            require_answer("http://nowhere.invalid/x")
    finally:
        ended.set()


def test_connections_are_limited_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address to which no route leads: the limit is handed to the system."""
    limits: list[Any] = []

    def connect(address: Any, timeout: Any = None, *_: Any, **__: Any) -> Any:
        limits.append(timeout)
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ConnectionError, match="unreachable"):
        require_answer("http://192.0.2.1/x")
    assert limits == [timeout()]


def test_an_answer_that_comes_late_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    go, closed = threading.Event(), threading.Event()

    class Late:
        def open(self, *_: Any, **__: Any) -> Any:
            go.wait(600)
            return SimpleNamespace(close=closed.set)

    monkeypatch.setattr(urllib.request, "build_opener", lambda *_: Late())
    monkeypatch.setenv("KEYFILTERS_TIMEOUT", "0.1")
    with pytest.raises(TimeoutError):
        open_address("http://127.0.0.1/x")
    go.set()
    assert closed.wait(600)


class Answers(BaseHTTPRequestHandler):
    """Answers with a status, a part of a file, and then no more."""

    status, content = 200, b"part"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "9")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.content)
            self.wfile.flush()
            time.sleep(0.5)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_any_answer_is_one(answering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for status in (200, 403, 404, 500):
        monkeypatch.setattr(Answers, "status", status)
        require_answer(answering)


@pytest.mark.parametrize(("limit", "error"), [(None, TimeoutError), (30, IncompleteRead)])
def test_downloads_of_libraries_have_a_limit_unless_they_set_one(
    answering: str,
    monkeypatch: pytest.MonkeyPatch,
    limit: float | None,
    error: type[Exception],
) -> None:
    monkeypatch.setenv("KEYFILTERS_TIMEOUT", "0.2")
    given = {} if limit is None else {"timeout": limit}
    with ask_first(), pytest.raises(error):
        urllib.request.urlopen(f"{answering}/x", **given).read()


def test_whoever_has_an_unknown_certificate_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that is asked next may know the certificate."""

    def refuse(*_: Any) -> Any:
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed"))

    monkeypatch.setattr(network, "open_address", refuse)
    require_answer("https://127.0.0.1/x")


def test_a_hub_that_is_set_to_be_offline_is_not_asked(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_answers()
    assert asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ConnectionError):
        hub_answers()
    assert asked == [DEAD]


def test_a_file_that_stops_half_way_is_not_kept(
    answering: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KEYFILTERS_TIMEOUT", "0.2")
    with pytest.raises(kf.KeyFiltersError, match=r"cannot be fetched .*give the file"):
        kf.read(f"{answering}/net.pth")
    assert not (tmp_path / "cache").exists()


def test_a_paper_that_needs_many_weights_waits_once(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = reproduce("unveiling")
    told = found.figures["state"].str.contains("no answer").sum()
    assert told > 1 and len(asked) == 1
    monkeypatch.setattr(network, "REMEMBERED", 0.0)
    network.SILENT.clear()
    for _ in range(2):
        with pytest.raises(ConnectionError, match="no answer"):
            require_answer("http://127.0.0.1/x")
    assert len(asked) == 3


@pytest.mark.parametrize("source", SOURCES)
def test_sources_that_nobody_serves_are_one_sentence(
    capsys: pytest.CaptureFixture[str], asked: list[str], source: str
) -> None:
    if source.startswith("torchvision"):
        pytest.importorskip("torchvision")
    code, _, error = run(capsys, "read", source)
    said = [x for x in error.splitlines() if not x.startswith("Downloading: ")]  # of older torch
    assert code == 2 and len(said) == 1 and "Traceback" not in error
    assert "no answer" in error and ("give the file" in error or "fetch" in error)
    assert len(asked) == 1, "somebody was asked again and again"


def test_weights_of_a_recipe_and_data_that_nobody_serves(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"name": "convnext_tiny", "options": {"pretrained": True}}
    with pytest.raises(kf.KeyFiltersError, match=r"no answer.*pretrained_cfg_overlay"):
        make_model(Recipe.from_dict({"model": model}), load_data("digits"))
    fake: Any = ModuleType("datasets")
    fake.config = SimpleNamespace(HF_HUB_OFFLINE=False)
    seen: list[tuple[bool, bool]] = []

    def load(name: str) -> Any:
        seen.append((fake.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE))
        raise FileNotFoundError(name)

    fake.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(kf.KeyFiltersError, match=r"no answer.*hf:FOLDER"):
        load_data("hf:some/set")
    assert seen == [(True, True)] and len(asked) == 1, "who is silent is asked once"
    assert not fake.config.HF_HUB_OFFLINE and not constants.HF_HUB_OFFLINE


def cached(folder: Path, repo: str, net: Any) -> None:
    """Lay weights into a hub's cache as its client does."""
    place = folder / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    save_file(net.state_dict(), snapshot / "model.safetensors")


def test_weights_of_timm_in_the_cache_ask_nobody(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = timm.create_model("test_convnext")
    cached(tmp_path / "hub", "timm/test_convnext.r160_in1k", net)
    bank = kf.read("timm:test_convnext.r160_in1k")
    expected = kf.read(net)
    for a, b in zip(bank.layers, expected.layers, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
    made = create_timm("test_convnext", pretrained=True, num_classes=3)
    assert made.pretrained_cfg["file"] is None and made.pretrained_cfg["hf_hub_id"]
    assert asked == []
    (tmp_path / "hub" / "models--timm--test_convnext.r160_in1k" / "refs" / "main").unlink()
    with pytest.raises(kf.KeyFiltersError, match="no answer"):
        kf.read("timm:test_convnext.r160_in1k")


def test_weights_that_lie_at_an_address_are_not_sought_at_the_hub(asked: list[str]) -> None:
    name = "gcvit_xxtiny.in1k"
    config = timm.get_pretrained_cfg(name)
    if config is None or config.hf_hub_id or not config.url:
        pytest.skip(f"this timm has {name} at the hub")
    with pytest.raises(kf.KeyFiltersError, match="no answer"):
        kf.read(f"timm:{name}")
    assert asked == [config.url]


def test_a_repository_that_was_fetched_asks_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(network, "require_answer", calls.append)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    save_file({"a.weight": torch.ones(8, 1, 5, 5)}, snapshot / "model.safetensors")
    monkeypatch.setattr(
        huggingface_hub, "list_repo_files", lambda *_, **__: ["model.safetensors", "README.md"]
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    bank = kf.read("hf-hub:org/net")
    assert len(calls) == 1 and len(kf.read("hf-hub:org/net")) == len(bank) and len(calls) == 1
    (snapshot / "model.safetensors").rename(snapshot / "other.safetensors")
    assert len(kf.read("hf-hub:org/net")) == len(bank) and len(calls) == 2, "it is not complete"
    monkeypatch.setenv("XDG_CACHE_HOME", str(snapshot / "other.safetensors"))
    assert len(kf.read("hf-hub:org/net")) == len(bank), "a cache that cannot be written"


def test_downloads_of_libraries_ask_first(
    silent: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConnectionError), ask_first():
        urllib.request.urlopen(f"{silent}/x")
    with pytest.raises(ConnectionError), ask_first():
        torch.hub.load_state_dict_from_url(f"{silent}/x.pth", model_dir=str(tmp_path))
    assert asked == [f"{silent}/x"], "who is silent is asked once"
    torch.save({}, tmp_path / "x.pth")
    with ask_first():
        assert torch.hub.load_state_dict_from_url(f"{silent}/x.pth", model_dir=str(tmp_path)) == {}
    assert len(asked) == 1, "what is there is not asked for"
    assert urllib.request._opener is None  # type: ignore[attr-defined]
    monkeypatch.setattr(urllib.request, "_opener", own := urllib.request.build_opener())
    with ask_first():
        assert urllib.request._opener is own  # type: ignore[attr-defined]


@pytest.mark.parametrize("home", ["no folder", "none"])
def test_a_cache_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    if home == "no folder":
        (tmp_path / "file").write_text("x")
        monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(kf.KeyFiltersError, match="XDG_CACHE_HOME"):
        kf.read("https://127.0.0.1/net.pth")


def test_names_of_any_length_are_kept(
    answering: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a.weight": torch.ones(8, 1, 5, 5)}, tmp_path / "net.pth")
    content = (tmp_path / "net.pth").read_bytes()

    def send(self: Answers) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)

    monkeypatch.setattr(Answers, "do_GET", send)
    for name in ("x" * 300, "%E5%90%8D" * 100):
        bank = kf.read(f"{answering}/{name}.pth")
        assert len(bank) == 8
    held = [x.name for x in (tmp_path / "cache").rglob("*.pth")]
    assert len(held) == 2 and all(len(x.encode()) < 255 for x in held)
