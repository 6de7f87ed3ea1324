from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import keyfilters as kf
from keyfilters.keyset import KeySet
from keyfilters.scalespace import centred_unit
from tests.cli.test_cli import run

MODEL = "timm:test_efficientnet?pretrained=false"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    state = timm.create_model("test_convnext", pretrained=False).state_dict()
    save_file({name: x.contiguous() for name, x in state.items()}, path)
    return path


def test_replace_writes_a_file_in_its_own_format(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, text, error = run(
        capsys, "replace", str(checkpoint), "--keys", "lines:6", "--out", str(out)
    )
    assert (code, error) == (0, "")
    assert sorted(p.name for p in out.iterdir()) == ["net.safetensors", "replace.csv"]
    assert "net.safetensors, keys lines:6" in text and str(out / "net.safetensors") in text
    table = pd.read_csv(out / "replace.csv")
    assert (table["keys"].dropna() == 6).all() and (table["explained"].dropna() > 0.05).all()
    old, new = load_file(checkpoint), load_file(out / "net.safetensors")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {f"{name}.weight" for name in table["layer"]}
    model = timm.create_model("test_convnext", pretrained=False)
    model.load_state_dict(new)


def test_replace_measures_on_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for i in range(8):
        pixels = random.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((200, 180)).save(tmp_path / f"{i}.png")
    (tmp_path / "no.png").write_bytes(b"no image")
    out = tmp_path / "out"
    code, text, error = run(
        capsys, "replace", MODEL, "--images", str(tmp_path), "--out", str(out), "--sensitivity"
    )
    assert code == 0 and "left out no.png" in error
    assert "Same answer as before on" in text
    assert sorted(p.name for p in out.iterdir()) == [
        "agreement.json",
        "model.safetensors",
        "replace.csv",
        "sensitivity.csv",
    ]
    measured = json.loads((out / "agreement.json").read_text())
    assert (measured["chosen on"], measured["measured on"]) == (4, 4)
    assert 0 <= measured["top1 agreement"] <= 1
    table = pd.read_csv(out / "sensitivity.csv")
    assert (
        table["layer"].tolist()
        == pd.read_csv(out / "replace.csv").query("keys > 0")["layer"].tolist()
    )


@pytest.mark.parametrize(("grouping", "sets"), [("layer", 9), ("2", 2), ("1", 1)])
def test_keys_of_layers_and_of_groups_of_layers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, grouping: str, sets: int
) -> None:
    out = tmp_path / "out"
    given = ["replace", "timm:test_convnext?pretrained=false", "--seed", "1"]
    code, text, error = run(capsys, *given, "--keys", f"lines:3/{grouping}")
    assert (code, error) == (0, "") and "keys lines:3" in text and not out.exists()
    code, again, _ = run(capsys, *given, "--keys", f"lines:3/{grouping}", "--out", str(out))
    assert code == 0 and again.startswith(text)
    replaced, drawn = kf.read(out / "model.safetensors"), set[str]()
    for layer in replaced.layers:
        unit = centred_unit(layer.weight)
        lines = {tuple(np.sign(x[np.abs(x).argmax()]) * x.round(3) + 0.0) for x in unit}
        assert len(lines) <= 3
        drawn.add(str(sorted(lines)))
    assert len(drawn) >= sets
    if sets == 1:
        every = np.concatenate([centred_unit(layer.weight) for layer in replaced.layers])
        assert (np.linalg.svd(every)[1] > 1e-3).sum() <= 3


def test_a_file_is_replaced_on_trial_without_out(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, content = set(checkpoint.parent.rglob("*")), checkpoint.read_bytes()
    monkeypatch.chdir(checkpoint.parent)
    code, text, error = run(capsys, "replace", checkpoint.name, "--keys", "lines:6")
    assert (code, error) == (0, "") and "net.safetensors, keys lines:6" in text
    assert set(checkpoint.parent.rglob("*")) == before and checkpoint.read_bytes() == content


def test_a_package_of_several_models_is_asked_which(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [checkpoint, checkpoint.parent / "other.pth"]
    monkeypatch.setattr("keyfilters.sources.package_files", lambda name: files[: len(name)])
    code, _, error = run(capsys, "replace", "package:ab")
    assert code == 2 and "2 models" in error and "/net.safetensors, other.pth" in error
    assert run(capsys, "replace", "package:a", "--keys", "lines:6")[0] == 0


def test_init_takes_keys_trained_filters_and_the_own_scale(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    keys = KeySet.random(2, size=7)
    keys.save(tmp_path / "keys.npy")
    given = ["init", "test_convnext", "--scheme", "keys", "--keys", str(tmp_path / "keys.npy")]
    before = set(tmp_path.rglob("*"))
    code, text, error = run(capsys, *given, "--std", "keep")
    assert (code, error) == (0, "") and "test_convnext" in text
    assert set(tmp_path.rglob("*")) == before
    out = tmp_path / "out"
    assert run(capsys, *given, "--std", "keep", "--out", str(out))[0] == 0
    table = pd.read_csv(out / "init.csv")
    np.testing.assert_allclose(table["rms_after"], table["rms_before"], rtol=1e-5)
    for layer in kf.read(out / "model.safetensors").layers:
        assert keys.assign(layer.weight).residual.max() < 1e-5
    given = ["init", "test_convnext", "--scheme", "idealized", "--bank", str(checkpoint)]
    assert run(capsys, *given)[0] == 0
    code, _, error = run(capsys, *given[:-2])
    assert code == 2 and "bank" in error


def test_init_writes_a_model_that_timm_loads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, text, error = run(
        capsys, "init", "test_convnext", "--std", "0.02", "--out", str(out), "--seed", "3"
    )
    assert (code, error) == (0, "") and "center-surround" in text
    path = str(out / "model.safetensors")
    model = timm.create_model("test_convnext", pretrained=False, checkpoint_path=path)
    for layer in kf.read(model).layers:
        rms = np.sqrt((layer.weight**2).mean((1, 2)))
        np.testing.assert_allclose(rms, 0.02, rtol=1e-5)
    # All else is the model's own initialisation from the seed.
    with torch.random.fork_rng():
        torch.manual_seed(3)
        own = timm.create_model("test_convnext", pretrained=False).state_dict()
    depthwise = {f"{layer.name}.weight" for layer in kf.read(model).layers}
    same = {n for n, x in model.state_dict().items() if torch.equal(x, own[n])}
    assert same == set(own) - depthwise


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replace", "hf-hub:timm/convnext_tiny"], "download it and name the file"),
        (["replace", "package:nothing-here"], "nothing-here"),
        (["replace", "missing.pth"], "there is no file missing.pth"),
        (
            ["replace", MODEL, "--keys", "lines:many"],
            "a number of keys is expected",
        ),
        (["replace", MODEL, "--keys", "lindeberg2026-Q"], "lindeberg2026-"),
        (["replace", MODEL, "--keys", "none.npy"], "there is no file none.npy"),
        (["replace", MODEL, "--keys", "lines:x/3"], "expected a number of keys and of groups"),
        (["replace", MODEL, "--keys", "kmeans:0/layer"], "as in kmeans:32/3"),
        (["replace", MODEL, "--keys", "lines:4/0"], "expected a number of keys and of groups"),
        (["discover", MODEL, "--executor", "local"], "type also: --out OUT"),
        (["replace", MODEL, "--layers", "stem"], "no depthwise layer is called 'stem'"),
        (["replace", MODEL, "--sensitivity"], "--sensitivity needs --images"),
        (["replace", MODEL, "--count", "9"], "--count is for --images photos"),
        (["discover", MODEL, "--count", "9"], "--count is for --images photos"),
        (["replace", "timm:resnet10t?pretrained=false"], "no depthwise filters in ResNet"),
        (["init", "test_convnext", "--scheme", "centre-surround"], "center-surround"),
        (["init", "test_convnext", "--std", "wide"], "expected a number or keep"),
        (["init", "test_convnex"], "the nearest names are: test_convnext"),
    ],
)
def test_what_the_user_can_mend(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, _, error = run(capsys, *arguments)
    assert code == 2 and message in error and error.count("\n") == 1


def test_a_checkpoint_is_measured_in_its_architecture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", pretrained=False, num_classes=7)
    torch.save(
        {"model": {f"module.{n}": x for n, x in model.state_dict().items()}}, tmp_path / "a.pth"
    )
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    random = np.random.default_rng(0)
    for i in range(4):
        pixels = random.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    arguments = ["replace", str(tmp_path / "a.pth"), "--model", "timm:test_efficientnet"]
    code, text, error = run(capsys, *arguments, "--images", str(images), "--out", str(out))
    assert (code, error) == (0, "") and "Same answer as before" in text
    measured = json.loads((out / "agreement.json").read_text())
    assert measured["measured on"] == 2 and "a.pth" in measured["source"]
    new = load_file(out / "model.safetensors")
    keys = kf.KeySet.published("lindeberg2026-B", 3)
    for layer in kf.read(model).layers:
        stored = new[f"{layer.name}.weight"][:, 0].numpy()
        assert keys.assign(stored).residual.max() < 1e-5 < keys.assign(layer.weight).residual.max()
    assert new["classifier.weight"].shape[0] == 7
    for name, message in (("timm:test_convnext", "does not fit"), ("test_convnext", "timm:NAME")):
        code, _, error = run(capsys, "replace", str(tmp_path / "a.pth"), "--model", name)
        assert code == 2 and message in error
    code, _, error = run(capsys, "replace", MODEL, "--model", "timm:test_convnext")
    assert code == 2 and "--model" in error


def test_files_cannot_be_measured(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    code, _, error = run(capsys, "replace", str(checkpoint), "--images", "photos")
    assert code == 2 and "--model timm:NAME" in error


def test_external_data_travel_with_the_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    w = np.random.default_rng(0).normal(size=(8, 1, 7, 7)).astype(np.float32)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="dw", group=8)
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 8, side, side])
        for name, side in (("x", 16), ("y", 10))
    ]
    weight = onnx.numpy_helper.from_array(w, "w")
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    source, out = tmp_path / "net.onnx", tmp_path / "out"
    external = {"save_as_external_data": True, "location": "net.onnx.data", "size_threshold": 0}
    onnx.save(model, source, **external)
    before = source.read_bytes()
    code, _, error = run(capsys, "replace", str(source), "--out", str(out))
    assert (code, error) == (0, "")
    bank = kf.read(out / "net.onnx")
    keys = kf.KeySet.published("lindeberg2026-B")
    assert keys.assign(bank.layers[0].weight).residual.max() < 1e-5
    assert (
        source.read_bytes() == before and kf.read(source).layers[0].weight[0, 0, 0] == w[0, 0, 0, 0]
    )
    assert len(list(out.iterdir())) == 3  # the model, its data and the table


@pytest.mark.parametrize("window", [(1, 7), (7, 1), (4, 4)])
def test_rows_and_even_windows_are_replaced(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, window: tuple[int, int]
) -> None:
    source, out = tmp_path / "a.safetensors", tmp_path / "out"
    weights = {"first.weight": torch.randn(4, 3, 3, 3), "dw.weight": torch.randn(8, 1, *window)}
    save_file(weights, source)
    for keys in ("lindeberg2026-B", "lines:4", "random:4", "idealized"):
        given = [str(source), "--keys", keys, "--layers", "dw", "--out", str(out)]
        code, text, error = run(capsys, "replace", *given)
        assert (code, error) == (0, "") and f"{window[0]}×{window[1]}" in text


def test_filters_without_published_keys_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    save_file({"dw.weight": torch.ones(4, 1, 1, 2)}, tmp_path / "a.safetensors")
    given = ["replace", str(tmp_path / "a.safetensors"), "--keys", "lindeberg2026-B"]
    code, _, error = run(capsys, *given)
    assert code == 2 and "1×2" in error
