"""Elimination by what the network answers, not by what the filters look like."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from keyfilters.discovery.elimination import Elimination, two_best
from keyfilters.discovery.progress_file import ProgressFile, digest_of
from keyfilters.discovery.shares import sites_of_size
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.surgery.recalibrate import Recalibration
from keyfilters.surgery.targets import Target, find_targets
from keyfilters.training.evaluate import accuracy, logits

__all__ = ["eliminate_by_answers"]

Shown = dict[str, float]


def eliminate_by_answers(
    model: nn.Module,
    pool: KeySet,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    tries: int | None = 3,
    batch_size: int = 28,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[Elimination, pd.DataFrame]:
    """Drop, one after another, the candidate that a network's answers miss least.

    For every drop a few candidates are tried: those whose loss lowers the explained variance of the
    network's filters least. All filters of the candidates' size are replaced by their nearest
    ``a · x + b`` among what would be left, batch normalisation is recalibrated, and in the same
    pass over the images the answers are compared: without labels with those of the unchanged
    network (mean KL divergence), with labels by their accuracy, and where that is equal by the
    cross entropy. A candidate that serves no filter is dropped without a trial (babaiee2025quest,
    who try all of them by labelled accuracy).

    Args:
        model: the network; unchanged in the end.
        pool: the candidates.
        images: ``(n, channels, height, width)`` as the network takes them.
        labels: ``(n,)`` integers, or None.
        tries: candidates tried for a drop; None tries all, which is exact and slow.
        batch_size: images at a time.
        folder: keeps a file of the drops made, from which the same search goes on if it was cut
            off.
        progress: called before every drop.

    Returns:
        The elimination, with minus the KL divergence (nats) or the accuracy as values, and one row
        a number of candidates: keys, kl and top1 (agreement of the first class), or accuracy and
        loss; and tried.

    Raises:
        KeyFiltersError: the network has no filters of the candidates' size or does not give one row
            of logits an image, labels do not fit, or `tries` is below 1.
    """
    if tries is not None and tries < 1:
        raise KeyFiltersError(f"tries must be at least 1, got {tries}")
    judge = _Judge(model, pool, images, labels, batch_size)
    progress_file = ProgressFile(folder, digest_of([*judge.identity(model), tries, batch_size]))
    steps = iter(progress_file.steps)
    alive = np.ones(len(pool), dtype=bool)
    order: list[int] = []
    rows: list[dict[str, Any]] = []
    while not rows or alive.sum() > 1:
        step = next(steps, None)
        if step is None:
            if progress is not None and rows:
                told = ", ".join(f"{name} {value:.3f}" for name, value in rows[-1]["shown"].items())
                progress(f"{alive.sum()} candidates, {told}")
            step = _next_drop(judge, alive, rows[-1]["shown"], tries) if rows else judge.all()
            progress_file.add(step)
        if step["dropped"] is not None:
            alive[step["dropped"]] = False
            order.append(step["dropped"])
        rows.append({"keys": int(alive.sum()), **step})
    order.append(int(np.flatnonzero(alive)[0]))
    curve = pd.DataFrame([{"keys": r["keys"], **r["shown"], "tried": r["tried"]} for r in rows])
    values = -curve["kl"] if labels is None else curve["accuracy"]
    return Elimination(np.array(order), values.to_numpy(dtype=np.float64)), curve


def _next_drop(
    judge: _Judge, alive: NDArray[np.bool_], shown: Shown, tries: int | None
) -> dict[str, Any]:
    cost = judge.cost(alive)
    idle = np.flatnonzero(alive & (cost == 0))
    if len(idle):
        return {"dropped": int(idle[0]), "shown": shown, "tried": 0}
    cheapest = np.argsort(np.where(alive, cost, np.inf), kind="stable")
    trials: dict[int, Shown] = {}
    for c in cheapest[: min(tries or len(cost), int(alive.sum()))]:
        alive[c] = False
        trials[int(c)] = judge.of(alive)
        alive[c] = True
    dropped = min(trials, key=lambda c: judge.rank(trials[c]))
    return {"dropped": dropped, "shown": trials[dropped], "tried": len(trials)}


class _Judge:
    """Replaces the filters of a copy of a network by some of the candidates, and asks it."""

    def __init__(
        self,
        model: nn.Module,
        pool: KeySet,
        images: Tensor,
        labels: Tensor | None,
        batch_size: int,
    ) -> None:
        self.pool = pool
        self.images, self.labels, self.batch_size = images, labels, batch_size
        names = {site.name for site in sites_of_size(model, pool.window)}
        self.reference = logits(model, images, images.device, batch_size=batch_size)
        if labels is not None:
            self._accuracy(self.reference)  # refuses labels that do not fit
        self.copy = copy.deepcopy(model)
        self.sites: list[Target] = [
            site for site in find_targets(self.copy)[0] if site.name in names
        ]
        self.filters = [site.filters for site in self.sites]
        self.recalibration = Recalibration(model, images, batch_size=batch_size)
        flat = np.concatenate([w.reshape(len(w), -1) for w in self.filters])
        flat -= flat.mean(1, keepdims=True)
        power = (flat**2).sum(1, keepdims=True)
        unit = flat / np.sqrt(np.where(power > 0, power, 1))
        self.gains: NDArray[np.float64] = (unit @ pool.filters.reshape(len(pool), -1).T) ** 2

    def identity(self, model: nn.Module) -> list[object]:
        """All that the answers depend on."""
        tensors = list(model.state_dict().values())
        return [type(model), *tensors, self.pool.filters, self.images, self.labels]

    def cost(self, alive: NDArray[np.bool_]) -> NDArray[np.float64]:
        """What the loss of each candidate would take from the explained variance; 0 if nothing."""
        best, top, _, next_best = two_best(self.gains, np.flatnonzero(alive))
        shaped = top > 0  # a filter without a shape needs no key
        lost = np.bincount(best[shaped], (top - next_best)[shaped], len(self.pool))
        serves = np.bincount(best[shaped], minlength=len(self.pool)) > 0
        # Two candidates that are equally good for a filter cost nothing, but do serve it.
        return np.where(serves, np.maximum(lost, np.finfo(float).tiny), 0.0)

    def all(self) -> dict[str, Any]:
        """Return the first step of an elimination: all candidates, and nothing dropped."""
        shown = self.of(np.ones(len(self.pool), dtype=bool))
        return {"dropped": None, "shown": shown, "tried": 1}

    def of(self, alive: NDArray[np.bool_]) -> Shown:
        """Compare the answers with some of the candidates."""
        keys = self.pool[alive]
        for site, filters in zip(self.sites, self.filters, strict=True):
            index, a, b, _ = keys.assign(filters)
            site.write_(keys.reconstruct(index, a, b))
        answers = self.recalibration.apply_(self.copy)
        if answers is None:
            answers = logits(self.copy, self.images, self.images.device, batch_size=self.batch_size)
        answers = answers.cpu()
        if self.labels is not None:
            return self._accuracy(answers)
        log_p, log_q = (x.double().log_softmax(1) for x in (self.reference, answers))
        kl = float(functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean"))
        same = (answers.argmax(1) == self.reference.argmax(1)).double().mean()
        return {"kl": kl, "top1": float(same)}

    def _accuracy(self, answers: Tensor) -> Shown:
        assert self.labels is not None
        measured = accuracy(nn.Identity(), [(answers, self.labels.cpu())], topk=(1,))
        return {"accuracy": measured["top1"], "loss": measured["loss"]}

    @staticmethod
    def rank(shown: Shown) -> tuple[float, ...]:
        """What to compare trials by, the least first."""
        return (shown["kl"],) if "kl" in shown else (-shown["accuracy"], shown["loss"])
