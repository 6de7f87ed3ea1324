"""Images decoded while the network trains, against Pillow and against images held in memory."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from keyfilters.errors import KeyFiltersError
from keyfilters.training import Data, Recipe, Trained, load_data, normalise, train
from keyfilters.training.batches import Batches
from keyfilters.training.data import MEAN, STD
from keyfilters.training.dataset import Images
from keyfilters.training.processes import make_accelerator, own_accelerate
from keyfilters.training.readers import Items
from keyfilters.training.run import Run
from tests.conftest import require

# Python 3.12 and later warn of what torch's loaders do on Linux.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")

CPU = torch.device("cpu")
SIDE = 16
RANDOM = {"scale": 0.2, "auto_augment": "rand-m9-mstd0.5-inc1", "flip": True}
MIXED = {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.5, "label_smoothing": 0.1}


def write_folder(folder: Path, train_images: int = 12, test_images: int = 4) -> Path:
    """Three classes, each noise of one colour, of sizes and kinds that differ."""
    generator = np.random.default_rng(0)
    for half, count in (("train", train_images), ("val", test_images)):
        for label, name in enumerate(("blue", "green", "red")):
            (folder / half / name).mkdir(parents=True)
            for i in range(count):
                height, width = generator.integers(20, 40, 2)
                pixels = generator.integers(0, 120, (height, width, 3), dtype=np.uint8)
                pixels[..., 2 - label] += 130
                suffix = (".png", ".jpg", ".JPEG")[i % 3]
                Image.fromarray(pixels).save(folder / half / name / f"{i}{suffix}")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"))


def load(folder: Path, **options: Any) -> Data:
    options = {"resolution": SIDE, "stream": True, "workers": 0, **options}
    return load_data(f"imagefolder:{folder}", **options)


def recipe(augmentation: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    values = {"batch": {"size": 12}, "augmentation": augmentation or {}, **sections}
    return Recipe.from_dict(values)


@pytest.fixture(autouse=True)
def state() -> Iterator[None]:
    with own_accelerate():
        yield


def batches(made: Recipe, data: Data) -> Batches:
    return Batches(made, data, make_accelerator(made, "cpu"))


def epochs(made: Recipe, data: Data, count: int = 1) -> tuple[Tensor, Tensor]:
    """All batches of a few epochs."""
    own = batches(made, data)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    parts = [part for epoch in range(count) for part in own.epoch(epoch)]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def decoded(data: Data, made: Recipe, epoch: int = 0) -> Tensor:
    """All training images as they are changed in an epoch, in the order of their numbers."""
    images = data.dataset("training", made, CPU)
    images.set_epoch(epoch)
    found, _, failed = images.__getitems__(range(len(images)))
    assert not failed
    return found


def bytes_of(images: Tensor) -> Tensor:
    """Undo what normalises them."""
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (MEAN, STD))
    return (images * std + mean).mul(255).round().byte()


@pytest.mark.parametrize("augmentation", [{}, {"crop": 2, "flip": True, **MIXED}])
def test_it_is_as_if_all_were_held_in_memory(folder: Path, augmentation: dict[str, Any]) -> None:
    held = load(folder, stream=False, mean=MEAN, std=STD)
    made = recipe(augmentation)
    for one, other in zip(epochs(made, load(folder), 2), epochs(made, held, 2), strict=True):
        assert torch.equal(one, other)


def test_against_pillow_by_hand(folder: Path) -> None:
    data = load(folder)
    x, y = epochs(recipe(), data)
    found = {
        (int(label), pixels.numpy().tobytes()) for pixels, label in zip(bytes_of(x), y, strict=True)
    }
    expected = set()
    for label, name in enumerate(data.classes):
        for path in (folder / "train" / name).iterdir():
            image = Image.open(path).convert("RGB")
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.crop((left, top, left + side, top + side))
            pixels = np.array(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            expected.add((label, pixels.transpose(2, 0, 1).tobytes()))
    assert len(expected) == 36 and found == expected


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_test_images_against_pillow_by_hand(folder: Path, interpolation: str) -> None:
    [(images, labels)] = batches(recipe({"interpolation": interpolation}), load(folder)).of("test")
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    kind = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    paths = sorted((folder / "val").glob("*/*"))
    for pixels, path in zip(bytes_of(images), paths, strict=True):
        image = Image.open(path).convert("RGB")
        short = 18  # 16 / 0.875
        size = [short * x // min(image.size) for x in image.size]
        large = image.resize((size[0], size[1]), kind)
        left, top = (round((x - SIDE) / 2) for x in size)
        cut = np.array(large.crop((left, top, left + SIDE, top + SIDE)))
        assert (pixels.permute(1, 2, 0).numpy() == cut).all()


def test_changes_differ_between_images_and_epochs_and_seeds(folder: Path) -> None:
    for augmentation in ({"scale": 0.2}, {"auto_augment": "rand-m9-mstd0.5-inc1"}, RANDOM):
        made, data = recipe(augmentation), load(folder)
        first, later = decoded(data, made), decoded(data, made, 1)
        assert torch.equal(first, decoded(data, made))
        assert (first == later).flatten(1).all(1).sum() < 6  # a few policies change nothing
        assert not torch.equal(first, decoded(data, recipe(augmentation, seed=1)))
    assert torch.equal(decoded(data, recipe()), decoded(data, recipe(), 1))


@pytest.mark.parametrize("policy", ["rand-m10-n9-p1-inc1", "original-mstd9", "augmix-m10-w4"])
def test_strong_policies_do_not_damage_images(folder: Path, policy: str) -> None:
    """Some of timm's ask Pillow for 0 bits of a colour, which version 13 refuses."""
    for epoch in range(6):
        assert len(decoded(load(folder), recipe({"auto_augment": policy}), epoch)) == 36


def test_nothing_is_drawn_from_the_callers_generators(folder: Path) -> None:
    made = recipe(RANDOM)
    for part in ("training", "test"):
        images = load(folder).dataset(part, made, CPU)
        before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        state = torch.get_rng_state()
        assert len(images.__getitems__(range(5))[0]) == 5
        after = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        assert before == after and torch.equal(state, torch.get_rng_state())


def test_workers_and_parts_change_nothing(folder: Path) -> None:
    plain = epochs(recipe({**RANDOM, **MIXED}), load(folder), 2)
    for one, other in zip(
        plain, epochs(recipe({**RANDOM, **MIXED}), load(folder, workers=2), 2), strict=True
    ):
        assert torch.equal(one, other)
    parts = recipe(RANDOM, batch={"size": 12, "accumulation": 3})
    for one, other in zip(
        epochs(recipe(RANDOM), load(folder)), epochs(parts, load(folder)), strict=True
    ):
        assert torch.equal(one, other)


def test_what_decodes_can_be_sent_to_a_process_that_is_not_forked(folder: Path) -> None:
    images = load(folder).dataset("training", recipe(RANDOM), CPU)
    sent: Images = ForkingPickler.loads(ForkingPickler.dumps(images))
    assert torch.equal(sent.__getitems__([3, 5])[0], images.__getitems__([3, 5])[0])


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(0.1), nn.Linear(48, 3))


def run(made: Recipe, data: Data | None, out: Path | None = None) -> Trained:
    return train(made, out, model=network(), data=data, device="cpu")


def test_it_learns(folder: Path, tmp_path: Path) -> None:
    source: dict[str, Any] = {
        "name": f"imagefolder:{folder}",
        "resolution": SIDE,
        "stream": True,
        "workers": 0,
    }
    source["validation"] = 0.0
    made = recipe(
        {"scale": 0.3, "flip": True}, data=source, schedule={"epochs": 8}, optimiser={"lr": 0.03}
    )
    trained = run(made, None, tmp_path)
    assert trained.history["test_top1"].iloc[-1] == 1.0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["data"]["training"] == [36, 3, SIDE, SIDE] and summary["data"]["skipped"] == []
    assert summary["data"]["mean"] == list(MEAN) and "training_crc32" in summary["data"]
    assert Recipe.load(tmp_path / "recipe.toml") == made


class StopError(Exception):
    pass


@pytest.mark.parametrize("step", [2, 3, 4, 5])
def test_interrupted_is_as_if_it_never_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    made = recipe({**RANDOM, **MIXED}, schedule={"epochs": 3}, checkpoint={"steps": 2})
    whole = run(made, load(folder))
    original = Run._part

    def part(self: Any, x: Tensor, y: Tensor) -> Tensor:
        if self.step == step:
            raise StopError
        return original(self, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_part", part)
        with pytest.raises(StopError):
            run(made, load(folder, workers=1), tmp_path)
    resumed = run(made, load(folder, workers=1), tmp_path)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    one, other = (x.history.drop(columns="seconds") for x in (whole, resumed))
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_files_of_other_content_are_another_run(folder: Path, tmp_path: Path) -> None:
    made = recipe(schedule={"steps": 2})
    copy = shutil.copytree(folder, tmp_path / "in")
    run(made, load(copy), tmp_path / "out")
    run(made, load(copy), tmp_path / "out")
    (copy / "val" / "red" / "0.png").write_bytes((copy / "val" / "red" / "3.png").read_bytes())
    with pytest.raises(KeyFiltersError, match=r"differs in images.content.test \(there "):
        run(made, load(copy), tmp_path / "out")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Two training images and a test image that cannot be read, and a file that is no image."""
    write_folder(tmp_path / "in")
    for name in ("train/blue/3.png", "train/red/4.jpg", "val/green/1.jpg"):
        path = tmp_path / "in" / name
        path.write_bytes(path.read_bytes()[:200])
    (tmp_path / "in" / "train" / "red" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def test_others_stand_in_for_images_that_cannot_be_read(damaged: Path) -> None:
    data, made = load(damaged), recipe(RANDOM)
    assert [(Path(x).name, why) for x, why in data.skipped] == [
        ("notes.txt", "not a .bmp .jpeg .jpg .png .webp file")
    ]
    found, labels, failed = data.dataset("training", made, CPU).__getitems__(range(36))
    assert len(found) == 36 and len({name for name, _ in failed}) == 2
    assert labels.tolist() != data.labels.tolist(), "others stand in"
    trained = run(recipe(RANDOM, schedule={"epochs": 2}), data)
    named = {name for name, _ in trained.summary["data"]["skipped"]}
    assert named == {
        *("train/red/notes.txt", "train/blue/3.png", "train/red/4.jpg", "val/green/1.jpg")
    }

    labels = torch.cat([t for _, t in batches(made, data).of("test")])
    assert labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_stops(damaged: Path, workers: int) -> None:
    with pytest.raises(KeyFiltersError, match=r"notes.txt cannot be read \(not a "):
        load(damaged, unreadable="stop")
    (damaged / "train" / "red" / "notes.txt").unlink()
    data = load(damaged, unreadable="stop", workers=workers)
    message = r"^\S*(3.png|4.jpg|1.jpg) cannot be read \([^\n]*\); data.unreadable is stop$"
    with pytest.raises(KeyFiltersError, match=message):
        run(recipe(), data)


def test_a_test_image_that_cannot_be_read_stops_after_training(folder: Path) -> None:
    data = load(folder, unreadable="stop")
    items = data.items["test"]
    files = items.source.copy()
    files[items.rows[-1]] = b"val/red/gone.png"
    gone = {**data.items, "test": replace(items, source=files)}
    with pytest.raises(KeyFiltersError, match=r"gone.png cannot be read \(FileNotFoundError"):
        run(recipe(batch={"size": 2}, schedule={"steps": 1}), replace(data, items=gone))


def test_a_folder_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    data = load(write_folder(tmp_path / "in"))
    (tmp_path / "in").rename(tmp_path / "out")
    message = "too many images of imagefolder:.* cannot be read .*FileNotFoundError"
    with pytest.raises(KeyFiltersError, match=message):
        epochs(recipe(), data)
    with pytest.raises(KeyFiltersError, match=message):
        list(batches(recipe(), data).of("test"))


def test_a_process_that_ends_is_said_in_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Images, numbers: list[int]) -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)  # the decoding process, as when memory runs out

    monkeypatch.setattr(Images, "__getitems__", die)
    with pytest.raises(KeyFiltersError, match="a process that decodes images ended; its memory"):
        epochs(recipe(), load(folder, workers=1))


def test_a_folder_is_listed_without_opening_an_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    data, whole = load(folder, samples=10, classes=["red", "blue"]), load(folder)
    assert data.images.device.type == "meta" and data.images.shape == (10, 3, SIDE, SIDE)
    assert data.classes == ("red", "blue") and data.labels.bincount().tolist() == [5, 5]
    items = data.items["training"]
    assert len({items.path(i).parts[1] for i in range(10)}) == 2
    assert whole.items["training"].path(1) == Path("train/blue/1.jpg")
    assert whole.describe()["training_crc32"] != data.describe()["training_crc32"]


def test_the_side_of_streamed_images_is_that_of_the_first(folder: Path) -> None:
    with Image.open(folder / "train" / "blue" / "0.png") as first:
        side = min(first.size)
    assert load(folder, resolution=0).images.shape == (36, 3, side, side)


def test_a_folder_without_a_test_half_is_split_as_one_in_memory(folder: Path) -> None:
    streamed, held = (load(folder / "train", stream=x) for x in (True, False))
    assert torch.equal(streamed.labels, held.labels)
    made = recipe({"crop": 2})
    assert torch.equal(epochs(made, streamed)[1], epochs(made, held)[1])


def refused(action: Callable[[], object], message: str) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        action()


def test_what_the_user_can_mend(folder: Path) -> None:
    refused(
        lambda: load_data("digits", stream=True),
        "data.stream is true for images in memory",
    )
    refused(lambda: load(folder, channels=1), "channels is 1 and data.stream True")
    refused(lambda: load(folder, workers=-1), "workers is -1; ")
    refused(lambda: load(folder, mean=[0.5]), r"mean is \[0.5\]; 3 numbers are expected")
    refused(
        lambda: load(folder, std=[1, 1, 0]), r"std is \[1.0, 1.0, 0.0\]; .* those of std above 0"
    )
    refused(lambda: recipe(data={"workers": -1}), "data.workers is -1; ")
    refused(lambda: recipe({"scale": 2}), "augmentation.scale is 2; ")
    refused(lambda: recipe({"scale": 0.1, "crop": 1}), "crop is 1 and augmentation.scale 0.1; both")
    for policy in ("rnd-m9", "rand-m9-q2", "rand-m9-mstdx5"):
        refused(
            lambda policy=policy: batches(recipe({"auto_augment": policy}), load(folder)),
            f"auto_augment is '{policy}'; one of timm's policies is expected, such as rand-m9",
        )
    digits = load_data("digits", samples=50)
    for name, value in (("scale", 0.5), ("auto_augment", "rand-m9"), ("interpolation", "random")):
        refused(
            lambda name=name, value=value: batches(recipe({name: value}), digits),
            f"augmentation.{name} is {value!r} for images that are held in memory; set data.stream",
        )


def test_mean_and_std_are_imagenets_or_as_asked(folder: Path) -> None:
    data = load(folder, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    x = next(batches(recipe(), data).of("test"))[0]
    y = next(batches(recipe(), load(folder)).of("test"))[0]
    torch.testing.assert_close(x, normalise(bytes_of(y), 0.5, 0.25), atol=1e-5, rtol=0)


def test_data_sets_of_the_hub_and_torchvision_are_streamed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require("torchvision")
    from torchvision import datasets

    few = partial(datasets.FakeData, size=60, image_size=(3, 20, 16), num_classes=3)
    monkeypatch.setattr(datasets, "FakeData", few)
    data = load_data("torchvision:FakeData", stream=True, workers=0)
    assert data.images.shape == (48, 3, 16, 16) and data.images.device.type == "meta"
    x, y = epochs(recipe({"scale": 0.5}), data)
    assert x.shape == (48, 3, 16, 16) and y.bincount().sum() == 48
    assert data.items["training"].checksum() != data.items["test"].checksum()
    assert isinstance(data.items["test"], Items)
