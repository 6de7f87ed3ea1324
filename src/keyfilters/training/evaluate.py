"""Measure any network: its accuracy on labelled images, its agreement with another on any.

A `model` maps images ``(n, 3, h, w)`` to logits ``(n, classes)``. It runs on `device` in
evaluation mode, without gradients; each of its modules comes back in the mode it had. Batches are a
Tensor of images, cut into pieces of `batch_size`, or any iterable (such as a DataLoader) of images
or (images, labels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional

from keyfilters.errors import KeyFiltersError
from keyfilters.passes import evaluating, refuse_non_finite, run

__all__ = ["Agreement", "Batches", "accuracy", "agreement", "evaluating", "logits"]

Batches = Tensor | Iterable[Tensor | Sequence[Tensor]]
Device = str | torch.device


@dataclass(frozen=True)
class Agreement:
    """How far a network answers as the reference does.

    Attributes:
        top1: fraction of the images to which both give the same first class.
        interval: 95 % Wilson interval of `top1`, which takes the images as independent: for many
            crops of a few photographs it is too narrow.
        kl: mean over the images of KL(reference ‖ model), in nats.
        logit_error: ‖z − z_ref‖ / ‖z_ref‖ of logits centred for each image, in Frobenius norms
            over all images; 1 is as far off as a network that gives all classes the same.
        count: number of images.
    """

    top1: float
    interval: tuple[float, float]
    kl: float
    logit_error: float
    count: int


def logits(
    model: nn.Module, batches: Batches, device: Device = "cpu", *, batch_size: int = 64
) -> Tensor:
    """Return the logits of all images ``(n, classes)`` on the CPU, float32 (or float64 as given).

    Raises:
        KeyFiltersError: no images, an output of another shape, or NaN or infinite logits.

    >>> logits(nn.Flatten(), torch.arange(4.0).reshape(2, 1, 1, 2))
    tensor([[0., 1.],
            [2., 3.]])
    """
    with evaluating(model):
        found = [_run(model, images, device) for images, _ in _pairs(batches, batch_size)]
    return torch.cat(found)  # outside inference mode, so that autograd can use it


def accuracy(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    *,
    topk: Sequence[int] = (1, 5),
    device: Device = "cpu",
) -> dict[str, float]:
    """Measure a classifier on labelled images; of equal logits the first class wins, as in argmax.

    Args:
        model: see the module.
        batches: (images, labels) with integer labels ``(n,)``.
        topk: numbers k of largest logits; k larger than the number of classes are left out.
        device: see the module.

    Returns:
        ``top1``, ``top5``, …: fraction of the images with their label among the k largest logits;
        ``loss``: mean cross entropy in nats; ``count``: number of images.

    Raises:
        KeyFiltersError: as `logits`; also labels that are missing or fit no logit.

    >>> images, labels = torch.tensor([[5.0, 0.0]] * 4), torch.tensor([0, 1, 1, 1])
    >>> accuracy(nn.Identity(), [(images, labels)])
    {'top1': 0.25, 'loss': 3.75..., 'count': 4}
    """
    ranks, loss, classes = [], 0.0, 0
    with evaluating(model):
        for images, labels in _pairs(batches):
            z = _run(model, images, device).double()
            classes = z.shape[1]
            y = _labels(labels, len(images), classes)
            order = z.argsort(dim=1, descending=True, stable=True)
            ranks.append((order == y[:, None]).int().argmax(1))
            loss += float(functional.cross_entropy(z, y, reduction="sum"))
    rank = torch.cat(ranks)
    fractions = {f"top{k}": float((rank < k).double().mean()) for k in topk if k <= classes}
    return {**fractions, "loss": loss / len(rank), "count": len(rank)}


def agreement(
    model: nn.Module,
    reference: nn.Module | Tensor,
    batches: Batches,
    *,
    device: Device = "cpu",
    batch_size: int = 64,
    progress: Callable[[int], object] | None = None,
) -> Agreement:
    """Measure how far a network answers as a reference does; no labels are needed.

    Args:
        model: see the module.
        reference: another such network, or its `logits` for the same images in the same order.
        batches: see the module.
        device: see the module.
        batch_size: see the module.
        progress: called after every batch with the number of images seen.

    Raises:
        KeyFiltersError: as `logits`; also a reference of another shape, or one that gives all
            classes the same logit in every image.

    >>> agreement(nn.Softmax(dim=1), nn.Identity(), torch.eye(4))
    Agreement(top1=1.0, interval=(0.51..., 1.0), kl=0.05..., logit_error=0.69..., count=4)
    """
    same, kl, error, norm, seen = 0, 0.0, 0.0, 0.0, 0
    with evaluating(model, reference):
        for images, _ in _pairs(batches, batch_size):
            z = _run(model, images, device).double()
            r = _run(reference, images, device, seen).double()
            if z.shape != r.shape:
                got = f"{r.shape[1]} classes, the model {z.shape[1]}"
                raise KeyFiltersError(f"the reference gives {got}; the same classes are expected")
            same += int((z.argmax(1) == r.argmax(1)).sum())
            log_p = r.log_softmax(1)
            kl += float((log_p.exp() * (log_p - z.log_softmax(1))).sum())
            error += float((z - r).var(1, correction=0).sum())  # centred, exactly 0 if constant
            norm += float(r.var(1, correction=0).sum())
            seen += len(images)
            if progress is not None:
                progress(seen)
    if isinstance(reference, Tensor) and len(reference) > seen:
        raise KeyFiltersError(f"the reference has logits of {len(reference)} images, not {seen}")
    if norm == 0:
        raise KeyFiltersError("the reference gives all classes the same logit: no answer to share")
    kl = max(0.0, kl / seen)  # rounding may take it below
    interval = binomtest(same, seen).proportion_ci(method="wilson")
    bounds = (float(interval.low), float(interval.high))
    return Agreement(same / seen, bounds, kl, sqrt(error / norm), seen)


def _pairs(batches: Batches, batch_size: int = 1) -> Iterator[tuple[Tensor, Tensor | None]]:
    count = 0
    for batch in batches.split(batch_size) if isinstance(batches, Tensor) else batches:
        pair = [batch] if isinstance(batch, Tensor) else batch
        kinds = [type(x).__name__ for x in pair] if isinstance(pair, list | tuple) else []
        if len(kinds) not in (1, 2) or not all(isinstance(x, Tensor) for x in pair):
            got = type(batch).__name__ + (f" of {kinds}" if kinds else "")
            raise KeyFiltersError(f"a batch is a {got}; Tensors (images, labels) are expected")
        count += len(pair[0])
        if len(pair[0]):
            yield pair[0], pair[1] if len(pair) == 2 else None
    if count == 0:
        raise KeyFiltersError("the batches hold no image; a generator serves one pass only")


def _run(model: nn.Module | Tensor, images: Tensor, device: Device, first: int = 0) -> Tensor:
    """Return the checked logits of a batch on the CPU; stored logits are cut out at `first`."""
    refuse_non_finite(images)
    if isinstance(model, Tensor):
        z = model[first : first + len(images)]
    else:
        z = run(model, images.to(device))
    if z.ndim != 2 or len(z) != len(images) or not z.shape[1]:
        got = tuple(z.shape)
        raise KeyFiltersError(f"logits are shape {got}; ({len(images)}, classes) is expected")
    z = z.detach().cpu()
    if bad := int((~z.isfinite().all(1)).sum()):
        raise KeyFiltersError(f"the logits of {bad} of {len(images)} images are NaN or infinite")
    return z if z.dtype == torch.float64 else z.float()


def _labels(labels: Tensor | None, count: int, classes: int) -> Tensor:
    if labels is None or labels.shape != (count,) or labels.is_floating_point():
        got = "missing" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise KeyFiltersError(f"labels are {got}; integers of shape ({count},) are expected")
    y = labels.cpu().long()
    if wrong := y[(y < 0) | (y >= classes)].tolist():
        raise KeyFiltersError(f"label {wrong[0]} for a model of {classes} classes, from 0 on")
    return y
