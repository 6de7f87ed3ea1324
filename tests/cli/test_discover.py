from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.cli.images import halves, labelled
from tests.cli.test_cli import run
from tests.discovery.test_discover import planted


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    _, five = planted(5, 0)
    _, seven = planted(7, 1, n=400)
    (five + seven).save(tmp_path / "bank.safetensors")
    return tmp_path / "bank.safetensors"


def test_discover_writes_keys_that_other_verbs_read(
    capsys: pytest.CaptureFixture[str], saved: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, text, error = run(
        capsys, "discover", str(saved), "--kinds", "lines", "--out", str(out), "--candidates", "30"
    )
    assert (code, error) == (0, "")
    assert "8 keys explain 9" in text and "the strictest null" in " ".join(text.split())
    names = {"keys_{}.safetensors", "keys_{}.txt", "curve_{}.csv", "models_{}.csv"}
    names |= {"served_{}.parquet"}
    assert {p.name for p in out.iterdir()} == {
        "discovery.png",
        "report.html",
        *(name.format(k) for name in names for k in (5, 7)),
    }
    keys = [kf.KeySet.from_file(out / f"keys_7.{suffix}") for suffix in ("txt", "safetensors")]
    np.testing.assert_allclose(keys[0].filters, keys[1].filters, atol=1e-12)
    assert len(keys[0]) == len(pd.read_csv(out / "models_7.csv")) == 8
    assert (out / "discovery.png").read_bytes().startswith(b"\x89PNG")


def test_discover_keys_of_a_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bank = tmp_path / "bank.safetensors"
    filters = kf.KeySet.random(3, (1, 7)).filters.repeat(20, 0).astype(np.float32)
    kf.FilterBank([Layer("net", "conv", filters, None, None, 0.0)]).save(bank)
    out, few = tmp_path / "out", ["--kinds", "lines", "--candidates", "6", "--rounds", "1"]
    code, text, error = run(
        capsys, "discover", str(bank), *few, "--keys", "3", "--size", "1x7", "--out", str(out)
    )
    assert (code, error) == (0, "") and "1×7" in text
    assert kf.KeySet.from_file(out / "keys_1x7.txt").window == (1, 7)
    assert {"curve_1x7.csv", "models_1x7.csv", "report.html"} <= {p.name for p in out.iterdir()}
    before = set(tmp_path.rglob("*"))
    code, alone, _ = run(capsys, "discover", str(bank), *few, "--keys", "3")
    assert code == 0 and text.startswith(alone) and "keys explain" in alone
    assert set(tmp_path.rglob("*")) == before
    for size, word in (("seven", "size"), ("7x1", "1×7")):
        code, _, error = run(capsys, "discover", str(bank), *few, "--size", size)
        assert code == 2 and word in error


MODEL = "timm:test_efficientnet?pretrained=false"
FEW = ["--candidates", "6", "--rounds", "1", "--kinds", "lines", "--size", "3", "--images"]


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (170, 180, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def pictures(folder: Path) -> None:
    for i in range(4):
        picture(folder / str(i % 2) / f"{i}.png", i)


@pytest.mark.parametrize(
    ("criterion", "column"), [("agreement", "kl"), ("outputs", "value"), ("accuracy", "loss")]
)
def test_discover_by_what_the_network_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, criterion: str, column: str
) -> None:
    pictures(tmp_path / "images")
    out = tmp_path / "out"
    given = [MODEL, *FEW, str(tmp_path / "images"), "--criterion", criterion, "--out", str(out)]
    code, text, error = run(capsys, "discover", *given)
    assert (code, error) == (0, "") and "keys explain" in text
    assert pd.read_csv(out / "curve_3.csv")[column].notna().all()
    assert not [x for x in out.iterdir() if x.name.startswith(".")]


def test_as_many_folders_as_classes_are_taken_in_their_order(tmp_path: Path) -> None:
    for name, seeds in (("dog", (0, 1)), ("cat", (1, 2, 3))):
        for seed in seeds:
            picture(tmp_path / name / f"{seed}.png", seed)
    images, labels = labelled(str(tmp_path), timm.create_model("test_efficientnet", num_classes=2))
    assert labels.tolist() == [0, 0, 0, 1, 1], "cat comes before dog"
    assert torch.equal(images[0], images[4]) and not torch.equal(images[0], images[3])


def test_one_image_cannot_be_halved(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture(tmp_path / "one" / "0.png", 0)
    given = [MODEL, *FEW, str(tmp_path / "one"), "--criterion", "outputs"]
    code, _, error = run(capsys, "discover", *given)
    assert code == 2 and "at least two" in error


def test_photographs_are_halved_by_their_sides() -> None:
    model = timm.create_model("test_efficientnet")
    left, right = halves("photos", model, 14, seed=3)
    side = model.pretrained_cfg["input_size"][-1]
    assert left.shape == right.shape == (14, 3, side, side)
    assert torch.equal(left, halves("photos", model, 14, seed=3)[0])
    assert not torch.equal(left, halves("photos", model, 14, seed=4)[0])
    mean, std = (torch.tensor(model.pretrained_cfg[x])[:, None, None] for x in ("mean", "std"))
    pixels = 255 * (left * std + mean)
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-3, rtol=0)


def test_folders_that_name_no_class(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    (tmp_path / "images" / "1").rename(tmp_path / "images" / "cat")
    given = [MODEL, *FEW, str(tmp_path / "images"), "--criterion", "accuracy"]
    code, _, error = run(capsys, "discover", *given)
    assert code == 2 and "has 2 folders, the model 1000 classes; name each folder" in error
    given[-3] = str(tmp_path / "images" / "cat")
    code, _, error = run(capsys, "discover", *given)
    assert code == 2 and "needs a folder with one folder a class" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keys", "many"], "--keys many: expected a number or auto"),
        (["--size", "3"], "no 3×3 filters in this bank"),
        (["--candidates", "5000"], "no kernel size has 5000 filters (5×5: 1600, 7×7: 400)"),
        (["--criterion", "agreement"], "needs --images and one model, timm:NAME"),
        (["--images", "photos"], "--images serve --criterion outputs, agreement and accuracy only"),
        (["--kinds", "codes"], "no candidates are called 'codes'; the nearest names are: code"),
    ],
)
def test_what_the_user_can_mend(
    capsys: pytest.CaptureFixture[str], saved: Path, arguments: list[str], message: str
) -> None:
    code, _, error = run(capsys, "discover", str(saved), *arguments)
    assert code == 2 and message in error
