"""What may be done to the depthwise filters before a network trains, by one line of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.keyset import KeySet
from keyfilters.query_strings import parse
from keyfilters.receptive_fields import PUBLISHED
from keyfilters.surgery import (
    bake_filters_,
    freeze_filters_,
    parametrize_filters_,
    replace_filters_,
)
from keyfilters.surgery.parametrize import LEARNABLE

__all__ = ["IDEALISED", "RANDOM", "Treatment", "alike", "key_set", "learning_pairs"]

KINDS = ("learned", "frozen", "idealized", "keys")
CONSENSUS, RANDOM = "consensus", "random"
IDEALISED = "lindeberg2026-B"
COUNT = 8  # random keys, as many as are published
NAMES = {
    "learned": "learned filters",
    "frozen": "filters as they are, frozen",
    "idealized": "own idealised models, frozen",
}
KEY_NAMES = {IDEALISED: "8 idealised keys", RANDOM: f"{COUNT} random keys"}
SYMBOLS = {"amplitude": "a", "bias": "b", "sigma": "σ"}


@dataclass(frozen=True)
class Treatment:
    """What is done to the filters of a network.

    Attributes:
        kind: ``"learned"`` (they train), ``"frozen"`` (as they are), ``"idealized"`` (each becomes
            its own idealised model, frozen) or ``"keys"``.
        keys: ``"random"``, ``"consensus"``, the name of a published set, or a file of keys.
        learn: of ``"amplitude"``, ``"bias"``, ``"sigma"``.
        drawn: whether key and sign of a channel are drawn, not those nearest to its filter.
        unit_norm: see `keyfilters.parametrize_filters_`.

    Raises:
        KeyFiltersError: an unknown kind or option.

    >>> Treatment.parse("keys?keys=random&learn=bias")
    Treatment(kind='keys', keys='random', learn=('bias',), drawn=False, unit_norm=False)
    """

    kind: str
    keys: str = IDEALISED
    learn: tuple[str, ...] = ()
    drawn: bool = False
    unit_norm: bool = False

    @classmethod
    def parse(cls, asked: str) -> Treatment:
        """Read ``KIND?keys=NAME&learn=bias,sigma&drawn=1&unit_norm=1``."""
        kind, options = parse(asked)
        if kind not in KINDS:
            known = f"{', '.join(KINDS)} are known{nearest(kind, KINDS)}"
            raise KeyFiltersError(f"{kind!r} cannot be done to filters; {known}")
        allowed = ("keys", "learn", "drawn", "unit_norm") if kind == "keys" else ()
        for name in options:
            if name not in allowed:
                known = f"it has {', '.join(allowed)}" if allowed else "it has none"
                raise KeyFiltersError(f"{kind} has no option {name!r}; {known}")
        learn = options.get("learn", ())
        learn = tuple(learn) if isinstance(learn, list | tuple) else (str(learn),)
        for name in learn:
            if name not in LEARNABLE:
                known = f"{', '.join(LEARNABLE)} are known{nearest(str(name), LEARNABLE)}"
                raise KeyFiltersError(f"{name!r} cannot be learned; {known}")
        flags = {name: options.get(name, 0) for name in ("drawn", "unit_norm")}
        for name, value in flags.items():
            if value not in (0, 1):
                raise KeyFiltersError(f"{asked!r}: {name} is {value!r}; 0 or 1 is expected")
        return cls(
            kind,
            str(options.get("keys", IDEALISED)),
            learn,
            **{k: bool(x) for k, x in flags.items()},
        )

    @property
    def nearest(self) -> bool:
        """Whether it depends on the filters that the network has."""
        return self.kind == "idealized" or (self.kind == "keys" and not self.drawn)

    @property
    def on_keys(self) -> bool:
        """Whether the filters are put on keys that are not random."""
        return self.kind == "keys" and self.keys != RANDOM

    @property
    def fitted(self) -> bool:
        """Whether each filter becomes the nearest of keys that are not random, or its own model."""
        return self.nearest and (self.on_keys or self.kind == "idealized")

    def __str__(self) -> str:
        """Name of the treatment in tables."""
        if self.kind != "keys":
            return NAMES[self.kind]
        named = Path(self.keys).stem if Path(self.keys).suffix else self.keys
        words = [KEY_NAMES.get(self.keys, f"keys {named}")]
        words += ["drawn" if self.drawn else "nearest"]
        learned = " and ".join(SYMBOLS[name] for name in self.learn)
        words += [f"{learned} learned"] if learned else ["frozen"]
        return ", ".join(words) + (", unit norm" if self.unit_norm else "")

    def apply_(self, network: nn.Module, size: int, seed: int) -> Callable[[], None]:
        """Do it to a network.

        Args:
            network: whose present filters count, where keys are nearest to them.
            size: kernel size, that of the keys.
            seed: of random keys and of the draw.

        Returns:
            What to call after training: checks that what was frozen has not moved, and makes the
            filters plain weights again.
        """
        if self.kind == "learned":
            return _nothing
        if self.kind == "keys":
            keys = key_set(self.keys, size, seed)
            parametrize_filters_(
                network,
                keys,
                self.learn,
                unit_norm=self.unit_norm,
                assignment="random" if self.drawn else "trained",
                seed=seed,
            )
            drawn = [x.clone() for x in _constants(network)]

            def finish() -> None:
                kept = zip(_constants(network), drawn, strict=True)
                if not all(torch.equal(x, y) for x, y in kept):
                    raise KeyFiltersError("keys were fixed, but moved")
                bake_filters_(network)

            return finish
        if self.kind == "idealized":
            replace_filters_(network, "idealized")
        return freeze_filters_(network).check


def alike(asked: str, others: Sequence[str], **changes: object) -> list[str]:
    """Return those treatments that differ from one in these changes and in nothing else.

    >>> alike("keys?learn=bias", ["keys", "keys?keys=random&learn=bias"], keys="random")
    ['keys?keys=random&learn=bias']
    """
    own = vars(Treatment.parse(asked))
    wanted = {**own, **changes}
    return [x for x in others if wanted != own and vars(Treatment.parse(x)) == wanted]


def learning_pairs(asked: Sequence[str]) -> list[tuple[str, str]]:
    """Return those treatments that differ in one thing that is learned, (with it, without it).

    >>> learning_pairs(["keys", "keys?learn=bias", "keys?learn=bias,sigma"])
    [('keys?learn=bias', 'keys'), ('keys?learn=bias,sigma', 'keys?learn=bias')]
    """
    pairs = []
    for name in asked:
        learn = Treatment.parse(name).learn
        for left in learn:
            others = alike(name, asked, learn=tuple(x for x in learn if x != left))
            pairs += [(name, other) for other in others]
    return pairs


def _nothing() -> None:
    pass


def _constants(network: nn.Module) -> Sequence[torch.Tensor]:
    """Everything about parametrised weights that is not learned."""
    return [x for name, x in network.named_buffers() if "parametrizations." in name]


def key_set(name: str, size: int, seed: int = 0) -> KeySet:
    """Return a key set of a kernel size by its name.

    Args:
        name: ``"random"`` (eight), ``"consensus"``, the name of a published set such as
            ``"lindeberg2026-B"``, or a file of keys.
        size: kernel size.
        seed: of random keys.

    Raises:
        KeyFiltersError: no such keys, or none of this size.

    >>> key_set("lindeberg2026-B", 5)
    KeySet(8 keys of 5×5: lindeberg2026-B)
    """
    if name == RANDOM:
        return KeySet.random(COUNT, size, seed)
    if name == CONSENSUS:
        return KeySet.consensus(size)
    if Path(name).suffix and Path(name).is_file():
        keys = KeySet.from_file(name)
        if keys.size != size:
            got = f"{name} holds keys of {keys.size}×{keys.size}"
            raise KeyFiltersError(f"{got}; the network's are {size}×{size}")
        return keys
    try:
        return KeySet.published(name, size)
    except KeyFiltersError as error:
        known = ", ".join((RANDOM, CONSENSUS, *PUBLISHED))
        raise KeyFiltersError(f"no keys {name!r} of {size}×{size}: {error}; {known}") from error
