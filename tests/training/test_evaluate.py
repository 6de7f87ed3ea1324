"""Accuracy and agreement, against slow loops and cases whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from keyfilters.errors import KeyFiltersError
from keyfilters.training import Agreement, accuracy, agreement, logits

CLASSES = 7


class Shifted(nn.Module):
    """Another network's logits plus a constant an image."""

    def __init__(self, net: nn.Module, by: float) -> None:
        super().__init__()
        self.net, self.by = net, by

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.by * (1 + x.mean((1, 2, 3))[:, None])


class Permuted(nn.Module):
    """Another network with its classes moved on by one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).roll(1, dims=1)


class Returns(nn.Module):
    """A network that gives whatever a function of its images gives."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def classifier(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


@pytest.fixture
def net() -> nn.Module:
    return classifier(0)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(23, 3, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(CLASSES, (23,), generator=torch.Generator().manual_seed(2))


def batches(images: Tensor, labels: Tensor, size: int = 5) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(images.split(size), labels.split(size), strict=True)


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = math.log(sum(math.exp(x - top) for x in row)) + top
    return [x - total for x in row]


def test_logits_are_those_of_evaluation_mode(net: nn.Module, images: Tensor) -> None:
    found = logits(net, images, batch_size=4)
    net.eval()
    torch.testing.assert_close(found, net(images).detach())
    assert found.dtype == torch.float32
    assert not found.is_inference() and not found.requires_grad


def test_logits_of_half_and_double_precision(images: Tensor) -> None:
    flat = images.flatten(1)
    assert logits(Returns(lambda x: x.flatten(1).double()), images).dtype == torch.float64
    half = logits(Returns(lambda x: x.flatten(1).bfloat16()), images)
    torch.testing.assert_close(half, flat.bfloat16().float())


def test_accuracy_against_a_loop(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    measured = accuracy(net, batches(images, labels), topk=(1, 3, 5, 8))
    first, third, fifth, loss = 0, 0, 0, 0.0
    for row, label in zip(logits(net, images).tolist(), labels.tolist(), strict=True):
        order = sorted(range(CLASSES), key=lambda c: -row[c])
        first += order[0] == label
        third += label in order[:3]
        fifth += label in order[:5]
        loss -= log_softmax(row)[label]
    assert list(measured) == ["top1", "top3", "top5", "loss", "count"]  # 8 classes there are none
    assert measured["count"] == 23
    assert (measured["top1"], measured["top3"]) == pytest.approx((first / 23, third / 23))
    assert (measured["top5"], measured["loss"]) == pytest.approx((fifth / 23, loss / 23))
    assert 0 < first < third < fifth


def test_accuracy_of_a_perfect_and_of_a_wrong_classifier() -> None:
    labels = torch.arange(6)
    perfect = 100 * torch.eye(6)
    right = accuracy(nn.Identity(), [(perfect, labels)])
    wrong = accuracy(nn.Identity(), [(-perfect, labels)])
    assert (right["top1"], right["top5"], right["loss"]) == (1, 1, pytest.approx(0, abs=1e-9))
    assert (wrong["top1"], wrong["top5"]) == (0, 0)
    assert wrong["loss"] == pytest.approx(100 + math.log(5))


def test_equal_logits_are_no_luck() -> None:
    """A network that has collapsed scores what its first class is worth, whatever the k."""
    measured = accuracy(nn.Identity(), [(torch.zeros(12, 4), torch.arange(12) % 4)], topk=(1, 2, 4))
    assert [measured[f"top{k}"] for k in (1, 2, 4)] == [0.25, 0.5, 1.0]


def test_accuracy_does_not_depend_on_the_batches(
    net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    whole = accuracy(net, [(images, labels)])
    loader = DataLoader(TensorDataset(images, labels), batch_size=6)
    for pieces in (batches(images, labels, 1), loader):
        measured = accuracy(net, pieces)
        assert measured == pytest.approx(whole)


def test_agreement_with_itself(net: nn.Module, images: Tensor) -> None:
    found = agreement(net, net, images, batch_size=4)
    assert (found.top1, found.kl, found.logit_error, found.count) == (1, 0, 0, 23)
    stored = agreement(net, logits(net, images, batch_size=4), images, batch_size=4)
    assert stored == found


def test_agreement_against_a_loop(net: nn.Module, images: Tensor) -> None:
    other = classifier(1)
    found = agreement(other, net, images, batch_size=10)
    same, kl, error, norm = 0, 0.0, 0.0, 0.0
    pairs = zip(logits(other, images).tolist(), logits(net, images).tolist(), strict=True)
    for z, r in pairs:
        same += max(range(CLASSES), key=z.__getitem__) == max(range(CLASSES), key=r.__getitem__)
        q, p = log_softmax(z), log_softmax(r)
        kl += sum(math.exp(b) * (b - a) for a, b in zip(q, p, strict=True))
        z, r = ([x - sum(row) / CLASSES for x in row] for row in (z, r))
        error += sum((a - b) ** 2 for a, b in zip(z, r, strict=True))
        norm += sum(b * b for b in r)
    assert found.top1 == same / 23
    assert found.kl == pytest.approx(kl / 23)
    assert found.logit_error == pytest.approx(math.sqrt(error / norm))
    assert found.kl > 0.001 and found.logit_error > 0.1


def test_a_constant_added_to_all_logits_changes_nothing(net: nn.Module, images: Tensor) -> None:
    found = agreement(Shifted(net, 3.0), net, images)
    assert found.top1 == 1
    assert found.kl == pytest.approx(0, abs=1e-9)
    assert found.logit_error == pytest.approx(0, abs=1e-5)


def test_swapped_classes_never_agree(net: nn.Module, images: Tensor) -> None:
    found = agreement(Permuted(net), net, images)
    assert found.top1 == 0 and found.kl > 0 and found.logit_error > 0.5
    assert found.interval[0] == 0 and 0 < found.interval[1] < 0.2


def test_a_network_without_an_answer_has_logit_error_one(net: nn.Module, images: Tensor) -> None:
    silent = Returns(lambda x: torch.full((len(x), CLASSES), 0.1))
    found = agreement(silent, net, images)
    assert found.logit_error == pytest.approx(1)
    with pytest.raises(KeyFiltersError, match="all classes the same logit"):
        agreement(net, silent, images)


@pytest.mark.parametrize(("hits", "count"), [(0, 9), (1, 1), (5, 9), (9, 9), (380, 1000)])
def test_interval_is_that_of_wilson(hits: int, count: int) -> None:
    reference = torch.eye(2).repeat(count, 1)[: 2 * count : 2]  # all of class 0
    model = reference.clone()
    model[hits:] = model[hits:].flip(1)
    found = agreement(nn.Identity(), reference, model)
    low, high = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert found.interval == pytest.approx((low, high), abs=1e-12)
    assert found.top1 == hits / count


def test_progress_counts_images(net: nn.Module, images: Tensor) -> None:
    seen: list[int] = []
    agreement(net, net, images, batch_size=10, progress=seen.append)
    assert seen == [10, 20, 23]


def test_batches_of_every_kind_give_the_same(
    net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    whole = logits(net, images)
    kinds: list[Any] = [
        images.split(5),
        batches(images, labels),
        DataLoader(TensorDataset(images), batch_size=5),
        DataLoader(list(images), batch_size=5),
        [images[:3], images[:0], images[3:]],
    ]
    for kind in kinds:
        torch.testing.assert_close(logits(net, kind), whole)


def test_every_module_comes_back_in_its_mode(
    net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    reference = nn.Sequential(classifier(1), net[3])  # shares a module with the network
    reference.eval()
    net.train()
    net[1].eval()  # a frozen BatchNorm in a network under training
    expected = [x.training for x in (*net.modules(), *reference[0].modules(), reference)]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes: list[bool] = []
    net[3].register_forward_hook(lambda module, *_: modes.append(module.training))

    agreement(net, reference, images)
    accuracy(net, batches(images, labels))
    logits(net, images)
    with pytest.raises(KeyFiltersError):
        accuracy(net, [images])

    assert [x.training for x in (*net.modules(), *reference[0].modules(), reference)] == expected
    assert modes and not any(modes)
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_modules_that_act_on_their_mode_are_told() -> None:
    """Adapters merge their weights in eval() and part them in train()."""

    class Adapter(nn.Module):
        merged = False

        def train(self, mode: bool = True) -> Adapter:
            self.merged = not mode
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            assert self.merged
            return x

    adapter = Adapter()
    logits(nn.Sequential(adapter), torch.eye(3))
    assert adapter.training and not adapter.merged


def test_what_batches_keep_can_be_trained_on(net: nn.Module, images: Tensor) -> None:
    kept: list[Tensor] = []

    def stream() -> Iterator[Tensor]:
        for batch in images.split(10):
            kept.append(batch * 2)
            yield kept[-1]

    logits(net, stream())
    net(kept[0]).sum().backward()
    assert not kept[0].is_inference()


@pytest.mark.parametrize("empty", [[], iter(()), torch.zeros(0, 3, 8, 8)])
def test_no_images(net: nn.Module, empty: Any) -> None:
    for measure in (logits, accuracy, lambda net, x: agreement(net, net, x)):
        with pytest.raises(KeyFiltersError, match="no image"):
            measure(net, empty)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x, r"shape \(23, 3, 9, 9\); \(23, classes\) is expected"),
        (lambda x: x.mean((0, 2, 3))[None], r"shape \(1, 3\)"),
        (lambda x: x.flatten(1)[:, :0], r"shape \(23, 0\)"),
        (lambda x: {"logits": x}, r"shape \(23, 3, 9, 9\)"),
        (lambda x: {"ids": x.long()}, "a dict without a floating tensor"),
        (lambda x: (None, x.long()), "a tuple without a floating tensor"),
        (lambda x: x.flatten(1) / torch.arange(23)[:, None].clamp(max=1), "1 of 23 images are NaN"),
        (lambda x: x.flatten(1).log(), "23 of 23 images are NaN"),
    ],
)
def test_outputs_that_are_no_logits(
    function: Callable[[Tensor], Any], message: str, images: Tensor, labels: Tensor
) -> None:
    model = Returns(function)
    with pytest.raises(KeyFiltersError, match=message):
        logits(model, images)
    with pytest.raises(KeyFiltersError, match=message):
        accuracy(model, [(images, labels)])
    with pytest.raises(KeyFiltersError, match=message):
        agreement(model, torch.eye(23), images)
    with pytest.raises(KeyFiltersError, match=message):
        agreement(Returns(lambda x: x.flatten(1)), model, images)


def test_references_that_do_not_fit(net: nn.Module, images: Tensor) -> None:
    stored = logits(net, images)
    with pytest.raises(KeyFiltersError, match=r"shape \(22, 7\); \(23, classes\)"):
        agreement(net, stored[:-1], images)
    with pytest.raises(KeyFiltersError, match="logits of 23 images, not 20"):
        agreement(net, stored, images[:20])
    with pytest.raises(KeyFiltersError, match="6 classes, the model 7"):
        agreement(net, stored[:, 1:], images)
    stored[3, 2] = torch.nan
    with pytest.raises(KeyFiltersError, match="1 of 23 images are NaN"):
        agreement(net, stored, images)


def test_labels_that_do_not_fit(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    wrong: list[tuple[Any, str]] = [
        (images, "missing"),
        ((images, labels[:-1]), r"shape \(22,\); integers of shape \(23,\)"),
        ((images, labels.float()), "torch.float32"),
        ((images, labels + 1), "label 7 for a model of 7 classes"),
        ((images, labels - 1), "label -1 for a model of 7 classes"),
        ((images, labels, labels), "a tuple of .'Tensor', 'Tensor', 'Tensor'.; Tensors"),
        ((images.numpy(), labels), "a tuple of .'ndarray', 'Tensor'."),
        ((), "a tuple;"),
        ({"images": images}, "a dict;"),
        (None, "a NoneType;"),
    ]
    for batch, message in wrong:
        with pytest.raises(KeyFiltersError, match=message):
            accuracy(net, [batch])
    with pytest.raises(KeyFiltersError, match="missing"):
        accuracy(net, images)


def test_an_agreement_is_a_record() -> None:
    record = Agreement(1.0, (0.5, 1.0), 0.0, 0.0, 4)
    with pytest.raises(AttributeError):
        record.top1 = 0.0  # type: ignore[misc]
