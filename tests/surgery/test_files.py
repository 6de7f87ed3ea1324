"""Replacing filters inside checkpoint files, against the same replacement in memory."""

from __future__ import annotations

import argparse
import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import keyfilters as kf
from keyfilters.errors import KeyFiltersError, NoFiltersError, SourceError
from keyfilters.keyset import KeySet
from keyfilters.surgery.files import _write, load_into, replace_in_file
from keyfilters.surgery.replace import replace_filters_

KEYS = [KeySet.random(8, size=k, seed=k) for k in (3, 5, 7)]
KEYS3 = KEYS[0]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def identical(a: Any, b: Any) -> bool:
    """Tell whether two checkpoints have the same structure, types, dtypes and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(identical, a, b))
    return identical(vars(a), vars(b)) if isinstance(a, argparse.Namespace) else bool(a == b)


def load(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def weight(seed: int = 0, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(*shape or (6, 1, 3, 3), generator=torch.Generator().manual_seed(seed))
    return drawn.to(dtype)


def replaced(tensor: Tensor, keys: KeySet = KEYS3) -> Tensor:
    """The oracle: keys assigned to the stored numbers, rounded to the dtype they are stored in."""
    index, a, b, _ = keys.assign(tensor[:, 0].double())
    return torch.from_numpy(keys.reconstruct(index, a, b))[:, None].to(tensor.dtype)


# ------------------------------------------------------------------ timm


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("test_convnext", ".safetensors"),
        ("test_convnext", ".pth"),
        ("test_efficientnet", ".safetensors"),
    ],
)
def test_replaced_files_load_in_timm_and_compute_the_same(
    tmp_path: Path, name: str, suffix: str
) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name).eval()
    source, target = tmp_path / f"a{suffix}", tmp_path / "made" / f"b{suffix}"
    if suffix == ".pth":
        torch.save({"epoch": 7, "state_dict": net.state_dict()}, source)
    else:
        save_file(net.state_dict(), source, metadata={"format": "pt"})
    before, content = copy.deepcopy(net.state_dict()), source.read_bytes()
    report = replace_in_file(source, target, KEYS)
    expected = replace_filters_(net, KEYS)
    columns = ["size", "filters", "keys", "used", "explained", "cosine", "error", "left"]
    assert report.set_index("layer")[columns].equals(
        expected.set_index("layer").loc[report["layer"], columns]
    )
    assert (report["left"] == "").any()
    again = timm.create_model(name, checkpoint_path=str(target)).eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(image), net(image))
        net.load_state_dict(before)
        assert not torch.equal(again(image), net(image))
    assert source.read_bytes() == content
    assert sorted(p.name for p in target.parent.iterdir()) == [target.name]


@pytest.mark.parametrize("classes", [1000, 7])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoints_load_into_the_model_that_is_named(
    tmp_path: Path, suffix: str, classes: int
) -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_convnext", num_classes=classes).eval()
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        inside = {f"module.{name}": x for name, x in net.state_dict().items()}
        torch.save({"epoch": 7, "model": inside}, path)
    else:
        save_file(net.state_dict(), path)
    for name in ("timm:test_convnext", "timm:test_convnext?pretrained=true"):
        loaded = load_into(path, name)
        assert type(loaded) is type(net)
        assert list(loaded.state_dict()) == list(net.state_dict())
        for one, other in zip(loaded.parameters(), net.parameters(), strict=True):
            assert torch.equal(one, other)
    with pytest.raises(KeyFiltersError, match="does not fit") as refused:
        load_into(path, "timm:test_efficientnet")
    assert any(name in str(refused.value) for name in ("conv_stem.weight", "stem.0.weight"))
    with pytest.raises(KeyFiltersError, match="timm:NAME"):
        load_into(path, "test_convnext")
    path.rename(tmp_path / "a.onnx")
    for missing in (path, tmp_path / "a.onnx", tmp_path):
        with pytest.raises(SourceError, match="no file of"):
            load_into(missing, "timm:test_convnext")


# ------------------------------------------------------------------ safetensors


def test_safetensors_keep_metadata_and_every_other_bit(tmp_path: Path) -> None:
    tensors = {
        "dw.weight": weight(0),
        "half.weight": weight(1, dtype=torch.float16),
        "brain.weight": weight(2, dtype=torch.bfloat16),
        "double.weight": weight(3, dtype=torch.float64) + 1e-9,
        "row.weight": weight(4, 6, 1, 1, 7),
        "stem.weight": weight(5, 6, 3, 3, 3),
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "eight": weight(6, 4).to(torch.float8_e4m3fn),
        "steps": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "nothing": torch.zeros(0, 4),
    }
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    metadata = {"format": "pt", "author": "we"}
    save_file(tensors, source, metadata=metadata)
    report = replace_in_file(source, target, KEYS3).set_index("layer")
    written = load_file(target)
    with safe_open(target, framework="pt") as file:
        assert file.metadata() == metadata
    done = {"dw", "half", "brain", "double"}
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        expected = replaced(tensor) if layer in done else tensor
        assert identical(written[name], expected), name
    assert set(report.index[report["left"] == ""]) == done
    assert report["left"]["row"] == "filters of 1×7, the keys are 3×3"
    assert target.stat().st_mode & 0o777 == source.stat().st_mode & 0o777


def test_safetensors_without_metadata_stay_so(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"module.dw.weight": weight()}, source)
    replace_in_file(source, target, KEYS3)
    with safe_open(target, framework="pt") as file:
        assert file.metadata() is None
    assert list(load_file(target)) == ["module.dw.weight"]


def test_a_first_convolution_is_left_alone_where_the_order_is_told(tmp_path: Path) -> None:
    tensors = {"a.weight": weight(0), "b.weight": weight(1)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pth")
    report = replace_in_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", KEYS3)
    assert not report["left"].any()
    report = replace_in_file(tmp_path / "a.pth", tmp_path / "b.pth", KEYS3).set_index("layer")
    assert "first convolution" in report["left"]["a"] and not report["left"]["b"]
    report = replace_in_file(tmp_path / "a.pth", tmp_path / "b.pth", KEYS3, layers=["a"])
    assert dict(zip(report["layer"], report["left"], strict=True)) == {
        "a": "",
        "b": "not among the layers asked for",
    }


# ------------------------------------------------------------------ pickles


def trained(net: nn.Module) -> dict[str, Any]:
    """A checkpoint as training scripts write it, with an optimiser that has made a step."""
    optimizer = torch.optim.AdamW(net.parameters())
    sum(p.square().sum() for p in net.parameters()).backward()
    optimizer.step()
    average = copy.deepcopy(net.state_dict())
    for tensor in average.values():
        tensor.mul_(0.9)
    return {
        "epoch": 3,
        "arch": "net",
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, layers=[1, (2, 3)]),
        "state_dict_ema": {f"module.{name}": x for name, x in average.items()},
        "metric": float("inf"),
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".PTH"])
def test_wrapped_checkpoints_keep_their_structure(
    network: nn.Module, tmp_path: Path, suffix: str, legacy: bool
) -> None:
    checkpoint = trained(network)
    source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    torch.save(checkpoint, source, _use_new_zipfile_serialization=not legacy)
    report = replace_in_file(source, target, KEYS).set_index("layer")["left"]
    written = load(target)
    assert target.read_bytes()[:2] == b"PK"
    expected = load(source)
    replace_filters_(expected["state_dict_ema"], KEYS)
    assert identical(written, expected)
    assert not identical(written, load(source))
    assert written["state_dict"]._metadata == checkpoint["state_dict"]._metadata
    assert report["1"] == report["3"] == report["5"] == ""
    assert report["state_dict"] == "another set of weights; 'state_dict_ema' was read"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_layers_that_were_not_read_are_reported(tmp_path: Path, suffix: str) -> None:
    tensors = {"a.weight": weight(0), "b.weight": weight(1).mul(100).to(torch.int8)}
    save = torch.save if suffix == "pth" else save_file
    save(tensors, tmp_path / f"a.{suffix}")
    report = replace_in_file(tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}", KEYS, layers=["a"])
    left = report.set_index("layer")["left"]
    assert left["a"] == "" and left["b.weight"] == "torch.int8 weights without scales"


def test_other_sets_stay_even_where_they_share_memory(tmp_path: Path) -> None:
    both = {"a.weight": weight(0), "b.weight": weight(1)}
    views = {name: x.view(-1) for name, x in both.items()}
    checkpoint = {"model": {"net": both}, "ema": both, "best": views}
    torch.save(checkpoint, tmp_path / "a.pth")
    replace_in_file(tmp_path / "a.pth", tmp_path / "b.pth", KEYS3)
    written = load(tmp_path / "b.pth")
    assert torch.equal(written["ema"]["b.weight"], replaced(both["b.weight"]))
    assert identical(written["model"], checkpoint["model"])
    assert identical(written["best"], views)


def test_layers_that_share_weights_go_on_sharing_them(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), *(nn.Conv2d(6, 6, 3, groups=6) for _ in range(2)))
    net[2].weight = net[1].weight
    torch.save({"model": net.state_dict()}, tmp_path / "a.pth")
    replace_in_file(tmp_path / "a.pth", tmp_path / "b.pth", KEYS3)
    written = load(tmp_path / "b.pth")["model"]
    replace_filters_(net, KEYS3)
    assert written["1.weight"].data_ptr() == written["2.weight"].data_ptr()
    net.load_state_dict(written)
    assert torch.equal(net[2].weight, written["1.weight"])
    assert identical(dict(net.state_dict()), dict(written))


def test_parameters_stay_parameters(tmp_path: Path) -> None:
    fixed = nn.Parameter(weight(1), requires_grad=False)
    torch.save({"stem": torch.ones(2, 3, 3, 3), "dw.weight": fixed}, tmp_path / "a.pth")
    replace_in_file(tmp_path / "a.pth", tmp_path / "b.pth", KEYS3)
    written = load(tmp_path / "b.pth")["dw.weight"]
    assert isinstance(written, nn.Parameter) and not written.requires_grad
    assert torch.equal(written, replaced(fixed.data))


def test_half_precision_equals_the_same_module_in_memory(
    network: nn.Module, tmp_path: Path
) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        net = copy.deepcopy(network).to(dtype)
        torch.save(net.state_dict(), tmp_path / "a.pt")
        replace_in_file(tmp_path / "a.pt", tmp_path / "b.pt", KEYS)
        replace_filters_(net, KEYS)
        assert identical(load(tmp_path / "b.pt"), net.state_dict())


def test_layers_and_keys_by_name(network: nn.Module, tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(network.state_dict(), source)
    report = replace_in_file(source, target, KEYS, layers="[13]").set_index("layer")["left"]
    assert report.to_dict() == {
        "1": "",
        "3": "",
        "4": "not among the layers asked for",
        "5": "not among the layers asked for",
    }
    replace_in_file(source, target, {"5": KEYS[2]})
    expected = copy.deepcopy(network.state_dict())
    expected["5.weight"] = replaced(expected["5.weight"], KEYS[2])
    assert identical(load_file(target), dict(sorted(expected.items())))
    bank = kf.read(target)
    assert KEYS[2].assign(bank.layers[-1].weight).residual.max() < 1e-6
    with pytest.raises(KeyFiltersError, match=r"no depthwise layer is called '55'.* are: 5"):
        replace_in_file(source, target, KEYS, layers=["55"])


# ------------------------------------------------------------------ refusals


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file of each kind that is refused, and some that are not."""
    torch.save({"dw.weight": weight(), "b.weight": weight(1)}, tmp_path / "good.pth")
    save_file({"dw.weight": weight()}, tmp_path / "good.safetensors")
    save_file({"fc.weight": weight(0, 4, 4)}, tmp_path / "empty.safetensors")
    save_file({"dw.weight": weight() / 0}, tmp_path / "nan.safetensors")
    torch.save({"fc.weight": weight(0, 4, 4)}, tmp_path / "empty.pth")
    torch.save([weight()], tmp_path / "list.pth")
    torch.save(nn.Conv2d(4, 4, 3, groups=4), tmp_path / "code.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:300])
    (tmp_path / "cut.safetensors").write_bytes(b"nothing")
    kf.read(tmp_path / "good.safetensors").save(tmp_path / "bank.safetensors")
    for name in ("net.tflite", "net.h5", "net.mnn", "cut.onnx"):
        (tmp_path / name).write_bytes(b"some bytes")
    (tmp_path / "folder.pth").mkdir()
    return tmp_path


REFUSED = [
    ("net.tflite", "b.tflite", "not a readable TensorFlow Lite model"),
    ("net.h5", "b.h5", "not a readable .* file"),
    ("net.mnn", "b.mnn", r"formats written are \.safetensors, \.pth, .*\.onnx, \.tflite"),
    ("good.pth", "b.safetensors", r"does not end in \.pth; type .*b\.pth"),
    ("good.pth", "b", r"does not end in \.pth"),
    ("none.pth", "b.pth", r"there is no file .*none\.pth"),
    ("folder.pth", "b.pth", "there is no file"),
    ("good.pth", "folder.pth", r"is a folder; name a file, such as .*folder\.pth.good\.pth"),
    ("good.pth", "good.pth", "is the source itself; .* type overwrite=True"),
    ("bank.safetensors", "b.safetensors", "is a filter bank that keyfilters saved, and no model"),
    ("code.pth", "b.pth", "would run code"),
    ("list.pth", "b.pth", "holds a list"),
    ("cut.pth", "b.pth", "not a readable PyTorch checkpoint"),
    ("cut.safetensors", "b.safetensors", "not a readable safetensors file"),
    ("nan.safetensors", "b.safetensors", "layer dw holds filters that are not finite"),
    ("cut.onnx", "b.onnx", "not a readable ONNX model"),
]


@pytest.mark.parametrize(("source", "target", "message"), REFUSED)
def test_what_is_refused_is_said_and_leaves_nothing(
    folder: Path, source: str, target: str, message: str
) -> None:
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    with pytest.raises(KeyFiltersError, match=message):
        replace_in_file(folder / source, folder / target, KEYS3)
    assert {p: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_without_depthwise_layers(folder: Path, suffix: str) -> None:
    with pytest.raises(NoFiltersError, match="no depthwise convolution"):
        replace_in_file(folder / f"empty.{suffix}", folder / f"b.{suffix}", KEYS3)


def test_keys_that_do_not_fit(folder: Path) -> None:
    with pytest.raises(KeyFiltersError, match="the keys are 7×7, but the model's filters are 3×3"):
        replace_in_file(folder / "good.safetensors", folder / "b.safetensors", KEYS[2])


def test_a_link_to_the_source_is_the_source(folder: Path) -> None:
    (folder / "link.pth").symlink_to(folder / "good.pth")
    with pytest.raises(KeyFiltersError, match="is the source itself"):
        replace_in_file(folder / "good.pth", folder / "link.pth", KEYS3)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_the_source_may_be_overwritten_if_that_is_asked_for(folder: Path, suffix: str) -> None:
    source = folder / f"good.{suffix}"
    other = folder / f"other.{suffix}"
    replace_in_file(source, other, KEYS3)
    replace_in_file(os.fspath(source), os.fspath(source), KEYS3, overwrite=True)
    replaced_bank, expected = kf.read(source), kf.read(other)
    for x, y in zip(replaced_bank.layers, expected.layers, strict=True):
        np.testing.assert_array_equal(x.weight, y.weight)


def test_a_failure_to_write_leaves_the_old_target(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "b.pth").write_bytes(b"old")
    names = sorted(p.name for p in folder.iterdir())

    def full(_: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", full)
    for target in (folder / "b.pth", folder / "new" / "deep" / "b.pth"):
        with pytest.raises(KeyFiltersError, match=r"disk full; what was there is unchanged"):
            replace_in_file(folder / "good.pth", target, KEYS3)
    assert (folder / "b.pth").read_bytes() == b"old"
    assert sorted(p.name for p in folder.iterdir()) == names


def test_errors_of_the_source_are_source_errors(folder: Path) -> None:
    with pytest.raises(SourceError):
        replace_in_file(folder / "none.pth", folder / "b.pth", KEYS3)


def test_a_model_never_stands_beside_data_that_are_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    replace = Path.replace

    def noted(file: Path, place: Path) -> Path:
        if Path(place).parent == tmp_path:
            moved.append(Path(place).name)
        return replace(file, place)

    def save(model: Path, written: object) -> None:
        for name in (model.name, f"{model.name}.data", "a.bin"):
            model.with_name(name).write_text("new")

    monkeypatch.setattr(Path, "replace", noted)
    _write(tmp_path / "m.onnx", save, ())
    assert moved[-1] == "m.onnx" and sorted(moved) == ["a.bin", "m.onnx", "m.onnx.data"]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"new"}


@pytest.mark.parametrize("ending", [".pth.tar", ".PT.TAR"])
def test_files_that_are_named_like_archives(tmp_path: Path, ending: str) -> None:
    torch.save({"stem": torch.ones(2, 3, 3, 3), "dw.weight": weight()}, tmp_path / f"a{ending}")
    replace_in_file(tmp_path / f"a{ending}", tmp_path / f"b{ending}", KEYS3)
    assert torch.equal(load(tmp_path / f"b{ending}")["dw.weight"], replaced(weight()))
    with pytest.raises(KeyFiltersError, match=r"does not end in \.p.*\.tar; type"):
        replace_in_file(tmp_path / f"a{ending}", tmp_path / "b.pth", KEYS3)
