"""Batch normalisation after surgery: the stored statistics, moved as surgery moved the inputs.

Plain recalibration takes new means and variances from some images. If these are few, or unlike the
training set, that alone changes the model. So we take only the *change*: what the statistics of the
same images are in the model before surgery and after it. A model in which nothing was replaced
keeps its statistics exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from keyfilters.errors import KeyFiltersError
from keyfilters.passes import evaluating, quiet, refuse_non_finite, run, undoing, unwrapped
from keyfilters.threads import one_thread_if_forked

__all__ = ["Recalibration", "batch_norms", "recalibrate_batchnorm_"]

Moments = tuple[Tensor, Tensor]  # mean and variance of every channel
Calls = dict[str, list[Moments]]  # one entry a call, by the name of the normalisation


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch normalisations that keep running statistics, by dotted name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


@one_thread_if_forked()
def recalibrate_batchnorm_(
    model: nn.Module, original: nn.Module, images: Tensor, *, batch_size: int = 64
) -> int:
    """Give a model the original's running statistics, moved as surgery moved those of some images.

    ``mean₀ + m − m₀`` and ``var₀ · v / v₀``, where m and v are mean and variance over a batch of
    what enters the normalisation, and m₀ and v₀ the same in the model before surgery. Layers are
    corrected in the order of the forward pass, so that each sees corrected inputs; over batches the
    corrections are averaged.

    Args:
        model: after surgery; changed in place.
        original: the same model before it.
        images: ``(n, channels, height, width)`` unlabelled, as the model takes them.
        batch_size: images at a time.

    Returns:
        The number of normalisations corrected; those that the images never reach keep theirs.

    Raises:
        KeyFiltersError: the two models differ in their normalisations.
    """
    before = Recalibration(original, images, batch_size=batch_size)
    before.apply_(model)
    return len(before.called)


class Recalibration:
    """What batch normalisation sees in a model before surgery, to correct any number of models.

    The arguments are those of `recalibrate_batchnorm_`.

    Attributes:
        kept: mean and variance of every normalisation of the original, by dotted name.
        called: names of those that the images reach.
        batches: the images.
    """

    def __init__(self, original: nn.Module, images: Tensor, *, batch_size: int = 64) -> None:
        refuse_non_finite(images)
        root = unwrapped(original)
        norms = batch_norms(root)
        self.kept: dict[str, Moments] = {}
        for name, norm in norms.items():
            mean, var = _running(norm)
            self.kept[name] = mean.clone(), var.clone()
        self.called: set[str] = set()
        self.batches = images.split(batch_size)
        self._before: list[Calls] = []
        with evaluating(root), quiet():
            for batch in self.batches if norms else ():
                found: Calls = {name: [] for name in norms}
                _run(root, norms, batch, lambda name, now, found=found: found[name].append(now))  # type: ignore[misc]
                self._before.append(found)
                self.called |= {name for name, calls in found.items() if calls}

    def apply_(self, model: nn.Module) -> Tensor | None:
        """Correct a model in place; return its outputs on the way, None if nothing normalises.

        A normalisation that is called several times in a pass gets the mean of its corrections.

        Raises:
            KeyFiltersError: its normalisations, or their calls, are not those of the original. The
                model is then unchanged.
        """
        root = unwrapped(model)
        norms = batch_norms(root)
        if list(norms) != list(self.kept):
            raise KeyFiltersError("the two models differ in their batch normalisations")
        if not norms:
            return None
        count = sum(map(len, self.batches))
        moved = {name: [torch.zeros_like(x) for x in kept] for name, kept in self.kept.items()}
        outputs = []
        with evaluating(root), quiet(), undoing(root):
            for batch, before in zip(self.batches, self._before, strict=True):
                changes, output = self._corrected_pass(root, norms, before, batch)
                outputs.append(output)
                for name, calls in changes.items():
                    for total, parts in zip(moved[name], zip(*calls, strict=True), strict=False):
                        total += sum(parts) * (len(batch) / count / len(calls))
            for name, module in norms.items():
                _correct_(module, self.kept[name], *moved[name])
        return torch.cat(outputs)

    def _corrected_pass(
        self, model: nn.Module, norms: dict[str, _BatchNorm], before: Calls, batch: Tensor
    ) -> tuple[Calls, Tensor]:
        """Run a batch and correct every normalisation just before each time that it is used.

        Returns:
            For every call what is added to the mean, and to the variance as a share of it; and the
            output.
        """
        changes: Calls = {name: [] for name in norms}

        def correct_(name: str, now: Moments) -> None:
            calls = changes[name]
            if len(calls) >= len(before[name]):
                raise KeyFiltersError(f"{name} is called more often than in the original")
            old_mean, old_var = before[name][len(calls)]
            # A channel that was constant before has no ratio to go by.
            ratio = torch.where(old_var > 1e-12, now[1] / old_var.clamp_min(1e-12), 1.0)
            calls.append((now[0] - old_mean, ratio - 1))
            _correct_(norms[name], self.kept[name], *calls[-1])

        output = _run(model, norms, batch, correct_)
        if any(len(changes[name]) != len(calls) for name, calls in before.items()):
            raise KeyFiltersError("the two models call their batch normalisations differently")
        return changes, output


def _running(norm: _BatchNorm) -> Moments:
    return norm.get_buffer("running_mean"), norm.get_buffer("running_var")


def _correct_(module: _BatchNorm, kept: Moments, shift: Tensor, growth: Tensor) -> None:
    """Set the statistics; those that do not move stay bit for bit."""
    new = (kept[0] + shift, kept[1] * (1 + growth))
    same = (shift == 0) & (growth == 0)
    for tensor, old, moved in zip(_running(module), kept, new, strict=True):
        tensor.copy_(torch.where(same, old, moved.to(old.dtype)))


def _run(
    model: nn.Module,
    norms: dict[str, _BatchNorm],
    batch: Tensor,
    see: Callable[[str, Moments], None],
) -> Tensor:
    """Run a batch and show the moments of what enters each normalisation before it is used."""

    def shown(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: see(name, _moments(args[0] if args else kwargs["input"]))

    handles = [
        module.register_forward_pre_hook(shown(name), with_kwargs=True)
        for name, module in norms.items()
    ]
    try:
        return run(model, batch)
    finally:
        for handle in handles:
            handle.remove()


def _moments(x: Tensor) -> Moments:
    """Mean and variance of every channel, dimension 1; four times as fast as torch.var_mean."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    x = x.float()
    mean = x.mean(axes, keepdim=True)
    return mean.flatten(), (x - mean).square_().mean(axes)
