"""Batches of one of several processes, and the data sets under them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from keyfilters.errors import KeyFiltersError
from keyfilters.training import Data, Recipe, load_data, normalise
from keyfilters.training.batches import Batches, share_of
from keyfilters.training.dataset import crop_and_flip
from keyfilters.training.processes import make_accelerator, own_accelerate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", samples=100)


@pytest.fixture(autouse=True)
def state() -> Iterator[None]:
    with own_accelerate():
        yield


def recipe(size: int = 20, accumulation: int = 1, **augmentation: Any) -> Recipe:
    batch = {"size": size, "accumulation": accumulation}
    return Recipe.from_dict({"batch": batch, "augmentation": augmentation})


def epoch(made: Recipe, data: Data, number: int = 0) -> tuple[Tensor, Tensor]:
    batches = Batches(made, data, make_accelerator(made, "cpu"))
    torch.manual_seed(0)
    x, y = zip(*batches.epoch(number), strict=True)
    return torch.cat(x), torch.cat(y)


def test_an_epoch_shows_every_image_once(digits: Data) -> None:
    x, _ = epoch(recipe(), digits)
    expected = normalise(digits.images, digits.mean, digits.std)
    rows, wanted = x.flatten(1), expected.flatten(1)
    nearest = torch.cdist(rows, wanted).argmin(1)
    assert sorted(nearest.tolist()) == list(range(100)) and nearest.tolist() != list(range(100))
    torch.testing.assert_close(rows, wanted[nearest], atol=1e-5, rtol=0)
    assert not torch.equal(x, epoch(recipe(), digits, 1)[0])
    assert torch.equal(x, epoch(recipe(), digits)[0])


def test_images_that_fill_no_batch_are_left_out(digits: Data) -> None:
    made = recipe(30, 2)
    batches = Batches(made, digits, make_accelerator(made, "cpu"))
    assert batches.per_epoch == 3 and [len(x) for x, _ in batches.epoch(0)] == [15] * 6


def test_parts_together_are_the_batch(digits: Data) -> None:
    whole = epoch(recipe(20, 1, crop=2, flip=True), digits, 3)
    parts = epoch(recipe(20, 5, crop=2, flip=True), digits, 3)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one, other)


def test_seeds_that_follow_each_other_share_no_order(digits: Data) -> None:
    """Accelerate's sampler adds the epoch to its seed."""
    later = Recipe.from_dict({"batch": {"size": 20}, "seed": 1})
    assert not torch.equal(epoch(recipe(), digits, 1)[0], epoch(later, digits, 0)[0])


@pytest.mark.parametrize("change", [{"flip": True}, {"crop": 2}, {"crop": 1, "flip": True}])
def test_what_is_drawn_is_a_function_of_epoch_and_image(
    digits: Data, change: dict[str, Any]
) -> None:
    images = digits.dataset("training", recipe(**change), CPU)
    x, labels, _ = images.__getitems__([3, 50, 7])
    assert torch.equal(x[[2, 0]], images.__getitems__([7, 3])[0])
    assert torch.equal(labels, digits.labels[[3, 50, 7]])
    images.set_epoch(1)
    everything = list(range(100))
    later = images.__getitems__(everything)[0]
    images.set_epoch(0)
    assert torch.equal(x, images.__getitems__([3, 50, 7])[0])
    assert not torch.equal(later, images.__getitems__(everything)[0])
    still = digits.dataset("test", recipe(**change), CPU).__getitems__([0, 1])[0]
    assert torch.equal(still, digits.test_images[:2])


def test_crop_and_flip_against_slices() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (50, 3, 6, 9), generator=generator).byte()
    corner = torch.randint(0, 5, (2, 50), generator=generator)
    mirror = torch.rand(50, generator=generator) < 0.5
    found = crop_and_flip(images, corner, mirror, 2)
    wide = torch.zeros(50, 3, 10, 13).byte()
    wide[:, :, 2:-2, 2:-2] = images
    for i in range(50):
        top, left = corner[:, i].tolist()
        cut = wide[i, :, top : top + 6, left : left + 9]
        assert torch.equal(found[i], cut.flip(2) if mirror[i] else cut)


def test_mixed_labels_are_smooth_shares(digits: Data) -> None:
    _, y = epoch(recipe(mixup=1.0, label_smoothing=0.1), digits)
    assert y.shape == (100, 10) and float(y.min()) == pytest.approx(0.01)
    torch.testing.assert_close(y.sum(1), torch.ones(100))


def test_erasing_leaves_most_of_an_image(digits: Data) -> None:
    plain, erased = (epoch(recipe(erasing=x), digits)[0] for x in (0.0, 1.0))
    changed = (plain != erased).double().mean((1, 2, 3))
    assert 0.02 < changed.mean() < 0.4


def test_test_images_are_shared_out_without_a_rest(digits: Data) -> None:
    made, labels = recipe(18), []
    for process in range(3):
        batches = Batches(made, digits, make_accelerator(made, "cpu"))
        batches._accelerator = type("Three", (), {"process_index": process, "num_processes": 3})()
        labels += [y for _, y in batches.of("test")]
    assert torch.equal(torch.cat(labels), digits.test_labels)


def test_errors_that_are_no_worker_s_stay_what_they_are(digits: Data) -> None:
    made = recipe()
    batches = Batches(made, digits, make_accelerator(made, "cpu"))
    batches._shift = torch.zeros(7)
    with pytest.raises(RuntimeError, match="size of tensor"):
        next(batches.epoch(0))


def test_channels_last(digits: Data) -> None:
    made = Recipe.from_dict({"channels_last": True})
    colour = load_data("digits", channels=3, samples=100)
    batches = Batches(made, colour, make_accelerator(made, "cpu"))
    x, _ = next(batches.epoch(0))
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("made", "processes", "message"),
    [
        (recipe(101), 1, "batch.size is 101, more than the 100 training images"),
        (recipe(20), 3, "batch.size 20 for 3 processes .* a multiple of 3"),
        (recipe(25, mixup=0.1), 1, "25 images cannot be mixed in pairs"),
    ],
)
def test_batches_that_cannot_be(made: Recipe, processes: int, message: str) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        share_of(made, 100, processes)
