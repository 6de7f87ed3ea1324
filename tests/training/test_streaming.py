"""Images decoded while the network trains, against Pillow and against images held in memory."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
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
from keyfilters.training.datasets import MEAN, STD
from keyfilters.training.decoding import Decoder
from keyfilters.training.labelled import StreamedData

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


def epochs(made: Recipe, data: Data, count: int = 1) -> tuple[Tensor, Tensor]:
    """All batches of a few epochs."""
    batches = Batches(made, data, CPU)
    parts = [batches.part(step, 0) for step in range(count * batches.per_epoch)]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


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
    batches = list(Batches(recipe({"interpolation": interpolation}), load(folder), CPU).test())
    assert [len(x) for x, _ in batches] == [12]
    images, labels = batches[0]
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
        decoder = Decoder(recipe(augmentation), load(folder))
        _, first, numbers, _ = decoder[0, 0, 36]
        _, again, others, _ = decoder[0, 0, 36]
        assert torch.equal(first, again) and torch.equal(numbers, others)
        _, later, moved, _ = decoder[1, 0, 36]
        same = first[numbers.argsort()] == later[moved.argsort()]
        assert (same.flatten(1).all(1)).sum() < 6  # a few policies leave an image as it is
        _, seeded, _, _ = Decoder(recipe(augmentation, seed=1), load(folder))[0, 0, 36]
        assert not torch.equal(first, seeded)
    plain = Decoder(recipe(), load(folder))
    (_, first, numbers, _), (_, later, moved, _) = plain[0, 0, 36], plain[1, 0, 36]
    assert numbers.tolist() != moved.tolist() and sorted(numbers.tolist()) == list(range(36))
    assert torch.equal(first[numbers.argsort()], later[moved.argsort()])


@pytest.mark.parametrize("policy", ["rand-m10-n9-p1-inc1", "original-mstd9", "augmix-m10-w4"])
def test_strong_policies_do_not_damage_images(folder: Path, policy: str) -> None:
    """Some of timm's ask Pillow for 0 bits of a colour, which version 13 refuses."""
    decoder = Decoder(recipe({"auto_augment": policy}), load(folder))
    for epoch in range(6):
        _, images, _, failed = decoder[epoch, 0, 36]
        assert len(images) == 36 and not failed


def test_one_image_is_changed_anew_in_every_place(tmp_path: Path) -> None:
    write_folder(tmp_path, 12, 1)
    for path in (tmp_path / "train").glob("*/*"):
        Image.open(next((tmp_path / "val" / "red").iterdir())).save(path)
    _, images, _, _ = Decoder(recipe({"scale": 0.2}), load(tmp_path, classes=["red"]))[0, 0, 12]
    assert len(images.flatten(1).unique(dim=0)) == 12


def test_nothing_is_drawn_from_the_callers_generators(folder: Path) -> None:
    decoder = Decoder(recipe(RANDOM), load(folder))
    for part in ((0, 0, 5), (-1, 0, 5)):
        before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        state = torch.get_rng_state()
        assert len(decoder[part][1]) == 5
        after = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        assert before == after and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("accumulation", "processes"), [(2, 1), (1, 2), (3, 2)])
def test_shares_together_are_the_batch(folder: Path, accumulation: int, processes: int) -> None:
    data, shared = load(folder), recipe(RANDOM, batch={"size": 12, "accumulation": accumulation})
    whole = Batches(recipe(RANDOM), data, CPU)
    shares = [Batches(shared, data, CPU, process, processes) for process in range(processes)]
    for step in (0, 1, 4):
        x, y = whole.part(step, 0)
        parts = [share.part(step, part) for share in shares for part in range(accumulation)]
        assert torch.equal(x, torch.cat([x for x, _ in parts]))
        assert torch.equal(y, torch.cat([y for _, y in parts]))
    tests = [y for share in shares for _, y in share.test()]
    assert torch.equal(torch.cat(tests), data.test_labels)


def test_a_step_does_not_depend_on_those_before(folder: Path) -> None:
    data, made = load(folder), recipe({**RANDOM, **MIXED})
    batches = Batches(made, data, CPU)
    walked = [batches.part(step, 0) for step in range(5)]
    assert walked[0][1].shape == (12, 3)
    assert sum(len(x) for x, _ in batches.test()) == 12
    for step in (4, 1):
        jumped = Batches(made, data, CPU).part(step, 0)
        again = batches.part(step, 0)
        for one, other, third in zip(walked[step], jumped, again, strict=True):
            assert torch.equal(one, other) and torch.equal(one, third)


def test_what_is_skipped_on_the_way_is_not_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []
    original = Decoder.__getitem__

    def spy(self: Decoder, request: tuple[int, int, int]) -> Any:
        asked.append(request)
        return original(self, request)

    monkeypatch.setattr(Decoder, "__getitem__", spy)
    batches = Batches(recipe(), load(folder), CPU)
    batches.part(4, 0)
    batches.part(5, 0)
    assert asked == [(1, 12, 24), (1, 24, 36)]


def test_processes_that_decode_change_nothing(folder: Path) -> None:
    made = recipe({**RANDOM, **MIXED})
    own, others = (Batches(made, load(folder, workers=count), CPU) for count in (0, 2))
    for step in (0, 1, 4, 3):  # one is left out: the processes are told anew what comes
        for one, other in zip(own.part(step, 0), others.part(step, 0), strict=True):
            assert torch.equal(one, other)
    for (x, y), (z, t) in zip(own.test(), others.test(), strict=True):
        assert torch.equal(x, z) and torch.equal(y, t)


def test_what_decodes_can_be_sent_to_a_process_that_is_not_forked(folder: Path) -> None:
    decoder = Decoder(recipe(RANDOM), load(folder))
    sent: Decoder = ForkingPickler.loads(ForkingPickler.dumps(decoder))
    assert torch.equal(sent[0, 0, 3][1], decoder[0, 0, 3][1])


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(0.1), nn.Linear(48, 3))


def run(made: Recipe, data: Data | None, out: Path | None = None) -> Trained:
    return train(made, out, model=network(), data=data, device="cpu")


def test_it_learns(folder: Path, tmp_path: Path) -> None:
    source = {"name": f"imagefolder:{folder}", "resolution": SIDE, "stream": True, "workers": 0}
    made = recipe(
        {"scale": 0.3, "flip": True}, data=source, schedule={"epochs": 8}, optimiser={"lr": 0.03}
    )
    trained = run(made, None, tmp_path)
    assert trained.history["test_top1"].iloc[-1] == 1.0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["data"]["images"] == [36, 3, SIDE, SIDE] and summary["data"]["skipped"] == []
    assert summary["data"]["mean"] == list(MEAN) and "files_crc32" in summary["data"]
    assert Recipe.load(tmp_path / "recipe.toml") == made


class StopError(Exception):
    pass


@pytest.mark.parametrize("step", [2, 4, 5])
def test_interrupted_is_as_if_it_never_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    made = recipe({**RANDOM, **MIXED}, schedule={"epochs": 3}, checkpoint={"steps": 2})
    whole = run(made, load(folder))
    original = Batches.part

    def part(self: Batches, now: int, which: int) -> Any:
        if now == step:
            raise StopError
        return original(self, now, which)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "part", part)
        with pytest.raises(StopError):
            run(made, load(folder), tmp_path)
    more = recipe(
        {**RANDOM, **MIXED}, schedule={"epochs": 3}, checkpoint={"steps": 2}, data={"workers": 1}
    )
    resumed = run(more, load(folder, workers=1), tmp_path)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    one, other = (x.history.drop(columns="seconds") for x in (whole, resumed))
    pd.testing.assert_frame_equal(one, other, check_exact=True)


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
    _, _, numbers, failed = Decoder(made, data)[0, 0, 36]
    left = {name: number for number, name in enumerate(data.files.tolist())}
    gone = {left[b"train/blue/3.png"], left[b"train/red/4.jpg"]}
    assert set(numbers.tolist()) == set(range(36)) - gone and len(failed) == 2
    trained = run(recipe(RANDOM, schedule={"epochs": 2}), data)
    named = {str(Path(name).relative_to(damaged)) for name, _ in trained.summary["data"]["skipped"]}
    assert named == {
        *("train/red/notes.txt", "train/blue/3.png", "train/red/4.jpg", "val/green/1.jpg")
    }

    x, y = epochs(made, data)
    shares = [Batches(made, data, CPU, process, 2) for process in range(2)]
    for step in range(3):
        parts = [share.part(step, 0) for share in shares]
        assert torch.equal(x[12 * step : 12 * step + 12], torch.cat([z for z, _ in parts]))
        assert torch.equal(y[12 * step : 12 * step + 12], torch.cat([t for _, t in parts]))
    labels = torch.cat([t for _, t in Batches(made, data, CPU).test()])
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
    assert isinstance(data, StreamedData)
    files = data.test_files.copy()
    files[-1] = b"val/red/gone.png"
    with pytest.raises(KeyFiltersError, match=r"gone.png cannot be read \(FileNotFoundError"):
        run(recipe(batch={"size": 2}, schedule={"steps": 1}), replace(data, test_files=files))


def test_a_folder_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    data = load(write_folder(tmp_path / "in"))
    (tmp_path / "in").rename(tmp_path / "out")
    message = "too many images of imagefolder:.* cannot be read .*FileNotFoundError"
    with pytest.raises(KeyFiltersError, match=message):
        Batches(recipe(), data, CPU).part(0, 0)
    with pytest.raises(KeyFiltersError, match=message):
        list(Batches(recipe(), data, CPU).test())


def test_a_process_that_ends_is_said_in_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Decoder, request: tuple[int, int, int]) -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)  # the decoding process, as when memory runs out

    monkeypatch.setattr(Decoder, "__getitem__", die)
    with pytest.raises(KeyFiltersError, match="a process that decodes images ended; its memory"):
        Batches(recipe(), load(folder, workers=1), CPU).part(0, 0)


def test_a_folder_is_listed_without_opening_an_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    data, whole = load(folder, samples=10, classes=["red", "blue"]), load(folder)
    assert isinstance(data, StreamedData) and isinstance(whole, StreamedData)
    assert data.images.device.type == "meta" and data.images.shape == (10, 3, SIDE, SIDE)
    assert data.classes == ("red", "blue") and data.labels.bincount().tolist() == [5, 5]
    assert len({file.split(b"/")[1] for file in data.files.tolist()}) == 2
    assert whole.files[:2].tolist() == [b"train/blue/0.png", b"train/blue/1.jpg"]
    assert whole.describe()["files_crc32"] != data.describe()["files_crc32"]
    assert load(folder, resolution=0).images.shape == (36, 3, 224, 224)


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
        "stream is true for digits with 3 channels; only imagefolder:FOLDER in colour can",
    )
    refused(lambda: load(folder, channels=1), "with 1 channels; only imagefolder")
    refused(lambda: load(folder, workers=-1), "workers is -1; 0 or more")
    refused(lambda: load(folder, mean=[0.5]), r"mean is \[0.5\]; 3 numbers are expected")
    refused(lambda: load(folder, std=[1, 1, 0]), r"std is \[1, 1, 0\]; .* those of std above 0")
    refused(lambda: recipe(data={"workers": -1}), "data.workers is -1; 0 or more")
    refused(lambda: recipe({"scale": 2}), "augmentation.scale is 2; 1 or less")
    refused(lambda: recipe({"scale": 0.1, "crop": 1}), "crop is 1 and augmentation.scale 0.1; both")
    for policy in ("rnd-m9", "rand-m9-q2", "rand-m9-mstdx5"):
        refused(
            lambda policy=policy: Batches(recipe({"auto_augment": policy}), load(folder), CPU),
            f"auto_augment is '{policy}'; one of timm's policies is expected, such as rand-m9",
        )
    digits = load_data("digits", samples=50)
    for name, value in (("scale", 0.5), ("auto_augment", "rand-m9"), ("interpolation", "random")):
        refused(
            lambda name=name, value=value: Batches(recipe({name: value}), digits, CPU),
            f"augmentation.{name} is {value!r} for images that are held in memory; set data.stream",
        )


def test_mean_and_std_are_imagenets_or_as_asked(folder: Path) -> None:
    data = load(folder, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    x = next(Batches(recipe(), data, CPU).test())[0]
    y = next(Batches(recipe(), load(folder), CPU).test())[0]
    torch.testing.assert_close(x, normalise(bytes_of(y), 0.5, 0.25), atol=1e-5, rtol=0)
