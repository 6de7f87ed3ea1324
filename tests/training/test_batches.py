"""What is cut for a process at a step, against one image at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from keyfilters.errors import KeyFiltersError
from keyfilters.training import Data, Recipe, load_data, normalise
from keyfilters.training.batches import Batches, crop_and_flip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", samples=100)


def recipe(size: int = 20, accumulation: int = 1, **augmentation: Any) -> Recipe:
    batch = {"size": size, "accumulation": accumulation}
    return Recipe.from_dict({"batch": batch, "augmentation": augmentation})


def whole(data: Data, made: Recipe, step: int, processes: int = 1) -> tuple[Tensor, Tensor]:
    """All that the processes cut at a step, in order."""
    parts = [
        Batches(made, data, CPU, process, processes).part(step, part)
        for process in range(processes)
        for part in range(made.batch.accumulation)
    ]
    x, y = zip(*parts, strict=True)
    return torch.cat(x), torch.cat(y)


def test_an_epoch_shows_every_image_once(digits: Data) -> None:
    batches = Batches(recipe(), digits, CPU)
    assert batches.per_epoch == 5
    x = torch.cat([batches.part(step, 0)[0] for step in range(5)])
    expected = normalise(digits.images, digits.mean, digits.std)
    rows, wanted = x.flatten(1), expected.flatten(1)
    nearest = torch.cdist(rows, wanted).argmin(1)
    assert sorted(nearest.tolist()) == list(range(100)) and nearest.tolist() != list(range(100))
    torch.testing.assert_close(rows, wanted[nearest], atol=1e-5, rtol=0)
    assert not torch.equal(batches.part(0, 0)[0], batches.part(5, 0)[0])


@pytest.mark.parametrize(("accumulation", "processes"), [(2, 1), (1, 2), (5, 2)])
def test_shares_together_are_the_batch(digits: Data, accumulation: int, processes: int) -> None:
    options = {"crop": 2, "flip": True}
    x, y = whole(digits, recipe(**options), 7)
    z, t = whole(digits, recipe(accumulation=accumulation, **options), 7, processes)
    assert torch.equal(x, z) and torch.equal(y, t)


def test_a_step_does_not_depend_on_those_before(digits: Data) -> None:
    made = recipe(crop=1, flip=True, mixup=0.5, cutmix=1.0, erasing=0.5)
    batches = Batches(made, digits, CPU)
    walked = [batches.part(step, 0) for step in range(8)][7]
    drawn = torch.rand(3)  # by a model with dropout
    jumped = Batches(made, digits, CPU).part(7, 0)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(walked[0], jumped[0]) and torch.equal(walked[1], jumped[1])


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
    _, y = Batches(recipe(mixup=1.0, label_smoothing=0.1), digits, CPU).part(0, 0)
    assert y.shape == (20, 10) and float(y.min()) == pytest.approx(0.01)
    torch.testing.assert_close(y.sum(1), torch.ones(20))


def test_erasing_leaves_most_of_an_image(digits: Data) -> None:
    plain, _ = Batches(recipe(), digits, CPU).part(0, 0)
    erased, _ = Batches(recipe(erasing=1.0), digits, CPU).part(0, 0)
    changed = (plain != erased).double().mean((1, 2, 3))
    assert 0.02 < changed.mean() < 0.4


def test_test_images_are_shared_out_without_a_rest(digits: Data) -> None:
    labels = [
        y for process in range(3) for _, y in Batches(recipe(18), digits, CPU, process, 3).test()
    ]
    assert torch.equal(torch.cat(labels), digits.test_labels)


def test_channels_last(digits: Data) -> None:
    made = Recipe.from_dict({"channels_last": True, "data": {"channels": 3}})
    colour = load_data("digits", channels=3, samples=100)
    x, _ = Batches(made, colour, CPU).part(0, 0)
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("made", "processes", "message"),
    [
        (recipe(101), 1, "batch.size is 101, more than the 100 training images"),
        (recipe(20), 3, "batch.size 20 for 3 processes of 1 parts each; a multiple of 3"),
        (recipe(25, mixup=0.1), 1, "parts of 25 images cannot be mixed in pairs"),
    ],
)
def test_batches_that_cannot_be(digits: Data, made: Recipe, processes: int, message: str) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        Batches(made, digits, CPU, 0, processes)
