"""Models in parts, one model in two formats, a hub's cache, broken downloads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save, save_file
from torch import Tensor, nn

import keyfilters as kf
from keyfilters.sources.collect import BY_NAME


def weights(count: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = [f"blocks.{i}.dw.weight" for i in range(count)]
    return {name: torch.randn(6, 1, 5, 5, generator=generator) for name in names}


def write_parts(
    folder: Path, suffix: str, index: bool, names: str = "model-0000{}-of-00002"
) -> None:
    folder.mkdir(exist_ok=True)
    held = list(weights().items())
    parts = {f"{names.format(i + 1)}{suffix}": dict(held[2 * i : 2 * i + 2]) for i in range(2)}
    for name, part in parts.items():
        (save_file if suffix == ".safetensors" else torch.save)(part, folder / name)
    if index:
        where = {key: name for name, part in parts.items() for key in part}
        text = json.dumps({"metadata": {}, "weight_map": where})
        (folder / f"model{suffix}.index.json").write_text(text)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("index", [True, False])
def test_parts_are_one_model(tmp_path: Path, suffix: str, index: bool) -> None:
    folder = tmp_path / "net"
    write_parts(folder, suffix, index)
    bank = kf.read(folder)
    assert bank.models == ["net"] and not bank.skipped
    assert [x.name for x in bank.layers] == [f"blocks.{i}.dw" for i in range(4)]
    np.testing.assert_allclose([x.depth for x in bank.layers], [0, 1 / 3, 2 / 3, 1])
    for layer, tensor in zip(bank.layers, weights().values(), strict=True):
        np.testing.assert_array_equal(layer.weight, tensor[:, 0])
    if index:
        same = kf.read(folder / f"model{suffix}.index.json")
        assert same.models == ["net"] and len(same) == len(bank)
    one = kf.read(folder / f"model-00001-of-00002{suffix}")
    assert len(one) == 12 and "part 1 of 2 of a model" in one.skipped[0][1]
    (folder / f"model-00002-of-00002{suffix}").unlink()
    with pytest.raises(kf.KeyFiltersError, match=r"lacks 1 of its 2 parts, such as model-00002-of"):
        kf.read(folder)


def test_an_index_may_name_parts_as_it_likes(tmp_path: Path) -> None:
    write_parts(tmp_path / "net", ".safetensors", True, "part_{}")
    assert kf.read(tmp_path / "net").models == ["net"]
    index = tmp_path / "net" / "model.safetensors.index.json"
    for text in ("{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../x.safetensors"}}'):
        index.write_text(text)
        with pytest.raises(kf.KeyFiltersError, match="not a readable index of shards"):
            kf.read(index)


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (("gone.safetensors",), "beside"),
        (("a.safetensors", "b.pth"), "format"),
        (("notes.txt",), "format"),
    ],
)
def test_an_index_of_files_that_are_no_parts(
    tmp_path: Path, names: tuple[str, ...], word: str
) -> None:
    save_file(weights(), tmp_path / "a.safetensors")
    torch.save(weights(), tmp_path / "b.pth")
    (tmp_path / "notes.txt").write_text("not a model")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: name for name in names}}))
    with pytest.raises(kf.KeyFiltersError, match=word):
        kf.read(index)


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    save_file(weights(), folder / "model.safetensors")
    (folder / "notes").symlink_to(tmp_path / "nowhere")
    (folder / "again").symlink_to(folder)
    os.mkfifo(folder / "queue.pth")
    bank = kf.read(folder)
    assert bank.models == ["net"] and len(bank) == 24 and not bank.skipped


def test_parts_that_hold_the_same_tensor(tmp_path: Path) -> None:
    for i in (1, 2):
        save_file(weights(), tmp_path / f"a-0000{i}-of-00002.safetensors")
    with pytest.raises(kf.KeyFiltersError, match=r"both hold 'blocks\.0\.dw\.weight'"):
        kf.read(tmp_path)


def test_one_model_in_two_formats_is_counted_once(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    torch.save(weights(), tmp_path / "pytorch_model.bin")
    torch.save({"state_dict": weights()}, tmp_path / "last.ckpt")
    short = {name: x.half() for name, x in weights().items()}
    save_file(short, tmp_path / "model.fp16.safetensors")
    torch.save(weights(seed=1), tmp_path / "another.pth")
    bank = kf.read(tmp_path)
    assert bank.models == [tmp_path.name, "another"] and len(bank) == 48
    said = dict(bank.skipped)
    assert said.keys() == {"model.fp16.safetensors", "pytorch_model.bin", "last.ckpt"}
    assert set(said.values()) == {"the same model as model.safetensors, counted once"}


def test_models_of_one_name_that_differ_are_two(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "net.safetensors")
    torch.save(weights(seed=1), tmp_path / "net.pth")
    assert len(kf.read(tmp_path)) == 48
    for run in ("a", "b"):  # two runs with the same frozen filters
        (tmp_path / "runs" / run).mkdir(parents=True)
        save_file(weights(), tmp_path / "runs" / run / "model.safetensors")
    assert kf.read(tmp_path / "runs").models == ["a", "b"]


def cache(root: Path, repo: str, files: dict[str, bytes], revision: str = "a" * 40) -> Path:
    """Lay files out as the hub's client does: links to blobs named by their hash."""
    home = root / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / revision
    for folder in (home / "blobs", home / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        blob = home / "blobs" / f"{abs(hash((name, revision))):x}"
        blob.write_bytes(content)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", blob.name))
    (home / "refs" / "main").write_text(revision)
    return snapshot


def test_a_hubs_cache_is_named_by_its_repositories(tmp_path: Path) -> None:
    old = {"model.safetensors": save(weights(seed=9))}
    cache(tmp_path, "org/net-a", old, "b" * 40)
    snapshot = cache(tmp_path, "org/net-a", {"model.safetensors": save(weights())})
    cache(tmp_path, "org/net-b", {"model.safetensors": save(weights(seed=2))})
    for path in (snapshot / "model.safetensors", snapshot, snapshot.parent.parent):
        bank = kf.read(path)
        assert bank.models == ["org/net-a"]
        np.testing.assert_array_equal(bank.layers[0].weight, weights()["blocks.0.dw.weight"][:, 0])
    assert kf.read(tmp_path).models == ["org/net-a", "org/net-b"]


@pytest.mark.parametrize("main", [None, "c" * 40])
def test_a_cache_without_its_main_revision_gives_the_newest(
    tmp_path: Path, main: str | None
) -> None:
    home = tmp_path / "models--org--net"
    for age, seed in ((1, 1), (0, 2), (2, 3)):
        content = {"model.safetensors": save(weights(seed=seed))}
        snapshot = cache(tmp_path, "org/net", content, str(seed) * 40)
        os.utime(snapshot, (1e9 - age, 1e9 - age))
    (home / "refs" / "main").unlink()
    if main:
        (home / "refs" / "main").write_text(main)
    [layer, *_] = kf.read(home).layers
    np.testing.assert_array_equal(layer.weight, weights(seed=2)["blocks.0.dw.weight"][:, 0])


def test_a_cache_without_snapshots(tmp_path: Path) -> None:
    home = tmp_path / "models--org--net"
    home.mkdir()
    for made in ("blobs", "snapshots"):
        (home / made).mkdir()
        with pytest.raises(kf.KeyFiltersError, match="not complete"):
            kf.read(home)


def test_the_hub_is_read_offline_if_the_cache_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cache(tmp_path, "org/net", {"model.safetensors": save(weights())})

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    def from_cache(repo: str, revision: str | None, local_files_only: bool = False) -> str:
        if repo != "org/net" or not local_files_only:
            raise OSError("not in the cache")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", from_cache)
    bank = kf.read("hf-hub:org/net")
    assert bank.models == ["org/net"] and len(bank) == 24
    with pytest.raises(kf.KeyFiltersError, match="hf-hub:org/other cannot be fetched: no network"):
        kf.read("hf-hub:org/other")
    for blob in (snapshot.parent.parent / "blobs").iterdir():
        blob.unlink()
    with pytest.raises(kf.KeyFiltersError, match="its download is not complete"):
        kf.read("hf-hub:org/net")
    with pytest.raises(kf.KeyFiltersError, match="its download is not complete; fetch it again"):
        kf.read(snapshot)
    with pytest.raises(kf.KeyFiltersError, match="is a link to a file that is not there"):
        kf.read(snapshot / "model.safetensors")
    write_parts(tmp_path / "parts", ".safetensors", True)
    (tmp_path / "parts" / "model-00002-of-00002.safetensors").unlink()
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "parts")
    )
    with pytest.raises(kf.KeyFiltersError, match="its copy in the cache lacks model-00002-of"):
        kf.read("hf-hub:org/net")


def test_damaged_weights_in_the_cache_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: object, **__: object) -> None:
        raise SafetensorError("incomplete metadata")

    monkeypatch.setattr(timm, "create_model", cut)
    with pytest.raises(kf.KeyFiltersError, match=r"delete .*models--timm--convnext_tiny\.fb_in1k"):
        kf.read("timm:convnext_tiny.fb_in1k")


def test_reading_leaves_the_random_state(tmp_path: Path) -> None:
    net = timm.create_model("test_convnext")
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    text = json.dumps({"architecture": "test_convnext", "pretrained_cfg": {}})
    (tmp_path / "config.json").write_text(text)
    before = torch.get_rng_state()
    kf.read(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------ checkpoints


def test_harmless_extras_of_checkpoints(tmp_path: Path) -> None:
    extras = {
        "metric": np.float64(71.2),
        "count": np.int32(3),
        "history": np.arange(4.0),
        "random": np.random.RandomState(0).get_state(),
        "folder": Path("a"),
        "state_dict": weights(),
    }
    torch.save(extras, tmp_path / "a.pth")
    assert len(kf.read(tmp_path / "a.pth")) == 24


def test_a_pickled_module_is_read_with_its_geometry(tmp_path: Path) -> None:
    torch.save({"model": nn.Conv2d(4, 4, 3, stride=2, groups=4)}, tmp_path / "a.pth")
    [layer] = kf.read(tmp_path / "a.pth").layers
    assert layer.stride == (2, 2) and layer.groups == 4 and not layer.note


@pytest.mark.parametrize("name", ["model_best.pth.tar", "a.PT.TAR"])
def test_checkpoints_that_are_named_like_archives(tmp_path: Path, name: str) -> None:
    torch.save({"epoch": 3, "state_dict": weights()}, tmp_path / name)
    assert len(kf.read(tmp_path / name)) == len(kf.read(tmp_path)) == 24


def test_the_order_of_safetensors_is_that_of_names_and_said(tmp_path: Path) -> None:
    held = {"stem.weight": torch.ones(4, 1, 3, 3)} | weights(12)
    save_file(held, tmp_path / "a.safetensors")
    torch.save(held, tmp_path / "a.pth")
    layers = kf.read(tmp_path / "a.safetensors").layers
    assert [x.name for x in layers] == [*(f"blocks.{i}.dw" for i in range(12)), "stem"]
    assert all(x.note.count(BY_NAME) == 1 for x in layers)
    assert not any(x.note.count("order of names") > 1 for x in layers)
    assert not any(BY_NAME in x.note for x in kf.read(tmp_path / "a.pth").layers)


CONTENTS = [
    (b"", "it is empty; fetch it again"),
    (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS .*type: git lfs pull"),
    (b"\n<!DOCTYPE html><html>", "it is a web page"),
    (b"x" * 257 + b"ustar", "damaged or cut short|not a readable"),
    (b"\x80\x02}q\x00(X\x01", "damaged or cut short; fetch or write it again"),
    (bytes(range(256)) * 3, "damaged or cut short; fetch or write it again"),
]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize(("content", "message"), CONTENTS)
def test_files_that_are_no_weights(
    tmp_path: Path, suffix: str, content: bytes, message: str
) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(kf.KeyFiltersError, match=message):
        kf.read(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx", ".tflite"])
def test_every_cut_of_a_download_is_one_sentence(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    (torch.save if suffix == ".pth" else save_file)(weights(), file)
    content = file.read_bytes()
    for cut in (0, 1, 7, 9, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:cut])
        with pytest.raises(kf.KeyFiltersError) as error:
            kf.read(file)
        assert "\n" not in str(error.value)


def test_shards_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """An index lists weights by name; which file comes first there says nothing."""
    held = weights(2)
    files = {"blocks.0.dw.weight": "model-00002-of-00002.bin"}
    files["blocks.1.dw.weight"] = "model-00001-of-00002.bin"
    for name, file in files.items():
        torch.save({name: held[name]}, tmp_path / file)
    index = tmp_path / "model.bin.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert [x.name for x in kf.read(index).layers] == ["blocks.1.dw", "blocks.0.dw"]
