"""What is done to the depthwise filters of a model before it is trained.

One line of text says it on the command line, in recipes and in experiments::

    learned                                     nothing: the filters train
    frozen                                      they stay as they are
    idealized                                   each becomes its own idealised model, frozen
    idealized?assign_from=SOURCE                each becomes that of a filter of another network
    keys?keys=consensus&learn=bias,sigma        each is a · key + b; b and σ are learned
    keys?keys=random:8&assignment=random        key and sign of every channel are drawn
    keys?keys=lines:8&keys_from=SOURCE          the keys are learned from another network's filters
    transfer?from=SOURCE&control=impulse&freeze=1
    initialize:center-surround?std=keep         a scheme of `initialize_filters_` and its options

In a recipe the section ``[filters]`` names the same options one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Self

from torch import nn

from keyfilters.bank import FilterBank
from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.learned_filters import METHODS
from keyfilters.nulls import NULLS
from keyfilters.query_strings import parse
from keyfilters.sources import read
from keyfilters.surgery.parametrize import LEARNABLE
from keyfilters.surgery.transfer import CONTROLS
from keyfilters.surgery.treated import IDEALIZED, Treated, treat_
from keyfilters.training import section

__all__ = ["Treated", "Treatment"]

DEFAULT_KEYS = "lindeberg2026-B"
OPTIONS = {
    "learned": (),
    "frozen": (),
    IDEALIZED: ("assign_from",),
    "keys": ("keys", "keys_from", "learn", "assignment", "drawn", "assign_from", "unit_norm"),
    "transfer": ("from", "control", "freeze"),
}


@section
class Treatment:
    """What is done to the depthwise filters; nothing by default.

    Attributes:
        initialize: a scheme of `keyfilters.initialize_filters_` with its options, such as
            ``"center-surround?std=keep"``; the bank of ``"idealized?bank=SOURCE"`` is read.
        transfer: a source for `keyfilters.read`, whose filters are copied
            (`keyfilters.transfer_filters_`).
        control: of the transfer: random, impulse, tap-shuffled, channel-shuffled, covariance or
            phase.
        keys: keys on which the filters are kept, as `KeySet.named` takes them, at each kernel size
            of the model that they have; or ``"idealized"``: each filter's own model, frozen.
        keys_from: a source from whose filters keys such as ``"lines:8"`` are learned and
            ``"covariance:8"`` are drawn, in place of the model's own.
        learn: what of the keys is learned, any of amplitude, bias and sigma; none freezes them.
        assignment: ``"trained"`` gives every channel the key, a and b nearest to its filter,
            ``"random"`` a key and sign that are drawn.
        assign_from: a source whose filters choose key, a and b in place of the model's own
            (lindeberg2026modelling); its layers must be the model's.
        unit_norm: whether each kernel on keys is divided by its ℓ2 norm.
        freeze: whether the filters stay as they then are.

    Raises:
        KeyFiltersError: a value of another type, or choices that exclude each other.

    >>> Treatment.parse("keys?keys=random&learn=bias").learn
    ('bias',)
    >>> str(Treatment(keys="consensus", learn=("bias", "sigma")))
    'keys?keys=consensus&learn=bias,sigma'
    """

    initialize: str = ""
    transfer: str = ""
    control: str = ""
    keys: str = ""
    keys_from: str = ""
    learn: tuple[Literal["amplitude", "bias", "sigma"], ...] = ()
    assignment: Literal["trained", "random"] = "trained"
    assign_from: str = ""
    unit_norm: bool = False
    freeze: bool = False

    def __post_init__(self) -> None:
        if self.keys == "random":
            object.__setattr__(self, "keys", "random:8")
        if self.control and self.control not in CONTROLS:
            expected = f"one of {', '.join(CONTROLS)} is expected{nearest(self.control, CONTROLS)}"
            raise KeyFiltersError(f"filters.control is {self.control!r}; {expected}")
        _refuse_conflicts(self)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a line such as ``keys?keys=random&learn=bias``; see the module.

        Raises:
            KeyFiltersError: an unknown name or option, or as the class.
        """
        if text.startswith("initialize:"):
            scheme = text.removeprefix("initialize:")
            plain = scheme.removesuffix("freeze=1").rstrip("?&")
            return cls(initialize=plain, freeze=scheme.endswith("freeze=1"))
        kind, options = parse(text)
        if kind not in OPTIONS:
            known = (*OPTIONS, "initialize:SCHEME")
            expected = f"{', '.join(known)} are known{nearest(kind, known)}"
            raise KeyFiltersError(f"{kind!r} cannot be done to filters; {expected}")
        for name in options:
            if name not in OPTIONS[kind]:
                listed = ", ".join(OPTIONS[kind]) or "none"
                tail = nearest(name, OPTIONS[kind])
                raise KeyFiltersError(f"{kind} has no option {name!r}; it has {listed}{tail}")
        flags = {name: _flag(text, name, options) for name in ("drawn", "unit_norm", "freeze")}
        if kind == "keys":
            learn: Any = options.get("learn")
            assignment = "random" if flags["drawn"] else str(options.get("assignment", "trained"))
            return cls(
                keys=str(options.get("keys", DEFAULT_KEYS)),
                keys_from=str(options.get("keys_from", "")),
                learn=tuple(learn) if isinstance(learn, list) else (learn,) if learn else (),
                assignment=assignment,  # type: ignore[arg-type]  # the class refuses others
                assign_from=str(options.get("assign_from", "")),
                unit_norm=flags["unit_norm"],
            )
        if kind == "transfer":
            if not options.get("from"):
                raise KeyFiltersError(f"{text!r} needs a source; type transfer?from=SOURCE")
            control = str(options.get("control", ""))
            return cls(transfer=str(options["from"]), control=control, freeze=flags["freeze"])
        if kind == IDEALIZED:
            return cls(keys=IDEALIZED, assign_from=str(options.get("assign_from", "")))
        return cls(freeze=kind == "frozen")

    def __str__(self) -> str:
        """The line that `parse` reads as an equal treatment, where there is one."""
        if self.keys == IDEALIZED:
            return f"{IDEALIZED}?assign_from={self.assign_from}".removesuffix("?assign_from=")
        if self.keys:
            options: dict[str, object] = {"keys": self.keys, "keys_from": self.keys_from}
            options |= {"learn": ",".join(self.learn)}
            options |= {"assignment": self.assignment} if self.assignment == "random" else {}
            options |= {"assign_from": self.assign_from, "unit_norm": int(self.unit_norm)}
            kind = "keys"
        elif self.transfer:
            kind, options = "transfer", {"from": self.transfer, "control": self.control}
        elif self.initialize:
            start = f"initialize:{self.initialize}"
            join = "&" if "?" in self.initialize else "?"
            return f"{start}{join}freeze=1" if self.freeze else start
        else:
            return "frozen" if self.freeze else "learned"
        options |= {"freeze": int(self.freeze)}
        return f"{kind}?" + "&".join(f"{name}={value}" for name, value in options.items() if value)

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from doing nothing, as the section ``[filters]`` of a recipe."""
        return {
            one.name: list(value) if isinstance(value, tuple) else value
            for one in fields(self)
            if (value := getattr(self, one.name)) != one.default
        }

    def factors(self) -> dict[str, Any]:
        """Return the levels that an experiment compares; None where a factor has no meaning.

        >>> Treatment.parse("keys?learn=bias").factors()
        {'filters': 'keys', 'keys': 'lindeberg2026-B', 'assignment': 'trained',
         'amplitude': False, 'bias': True, 'sigma': False}
        """
        on_keys = bool(self.keys) and self.keys != IDEALIZED
        kind = "keys" if on_keys else self.keys or ("frozen" if self.freeze else "learned")
        shown: dict[str, Any] = {"filters": kind, "keys": self.keys if on_keys else None}
        shown["assignment"] = self.assignment if on_keys else None
        return shown | {name: name in self.learn if on_keys else None for name in LEARNABLE}

    @property
    def uses_filters(self) -> bool:
        """Whether the result depends on the filters that the model has."""
        return bool(self.keys) and self.assignment == "trained" and not self.assign_from

    def contents(self) -> dict[str, str]:
        """Return a digest of every file or source that is named, by its name.

        Names such as ``@ROLE``, which stand for what is not yet there, are left out.

        Raises:
            KeyFiltersError: one of them cannot be read.
        """
        options = parse(self.initialize)[1]
        banks = (self.transfer, self.assign_from, self.keys_from, str(options.get("bank", "")))
        found = {name: _digest(read(name)) for name in banks if name and not name.startswith("@")}
        for name in (self.keys, str(options.get("keys", ""))):
            if Path(name).is_file():
                found[name] = hashlib.sha256(Path(name).read_bytes()).hexdigest()[:16]
        return found

    def apply_(self, model: nn.Module, seed: int = 0) -> Treated:
        """Do it to a model, in place; first to initialise or copy, then to put on keys or freeze.

        Args:
            model: the module that is to be trained.
            seed: of all that is drawn.

        Returns:
            What was done; call its ``finish(model)`` after training.

        Raises:
            KeyFiltersError: a source or key set that cannot be had or does not fit the model, which
                is then unchanged.

        >>> net = nn.Sequential(nn.Conv2d(8, 8, 7, groups=8))
        >>> treated = Treatment.parse("keys?learn=bias").apply_(net)
        >>> treated.table[["layer", "parameters"]].values.tolist()
        [['0', 8]]
        >>> treated.finish(net); [name for name, _ in net.named_parameters()]
        ['0.weight', '0.bias']
        """
        return treat_(model, self, seed)


def _refuse_conflicts(t: Treatment) -> None:
    if not t.keys:
        for name in ("learn", "assign_from", "keys_from", "unit_norm"):
            if getattr(t, name):
                mend = f'set filters.keys too, for example to "{DEFAULT_KEYS}"'
                raise KeyFiltersError(f"filters.{name} needs keys; {mend}")
        if t.assignment != "trained":
            raise KeyFiltersError("filters.assignment is that of keys; set filters.keys too")
    if t.keys_from and t.keys.partition(":")[0] not in (*METHODS, *NULLS):
        got = f"filters.keys_from with filters.keys = {t.keys!r}"
        raise KeyFiltersError(f"{got}; these keys come from no filters, set keys to lines:8")
    if t.control and not t.transfer:
        raise KeyFiltersError("filters.control is that of a transfer; set filters.transfer too")
    if (t.freeze or t.keys == IDEALIZED) and t.learn:
        got = f"frozen filters with filters.learn = {list(t.learn)}"
        raise KeyFiltersError(f"{got}; frozen filters learn nothing, so leave one of them out")
    if t.assign_from and t.assignment == "random":
        got = 'filters.assign_from with filters.assignment = "random"'
        raise KeyFiltersError(f"{got}; what is drawn needs no source, so leave one of them out")
    given = [name for name in ("initialize", "transfer", "assign_from") if getattr(t, name)]
    if len(given) > 1:
        got = " and ".join(f"filters.{name}" for name in given)
        raise KeyFiltersError(f"{got} would overwrite each other's filters; give one of them")


def _flag(text: str, name: str, options: Mapping[str, Any]) -> bool:
    value = options.get(name, 0)
    if value not in (0, 1):
        raise KeyFiltersError(f"{text!r}: {name} is {value!r}; 0 or 1 is expected")
    return bool(value)


def _digest(bank: FilterBank) -> str:
    found = hashlib.sha256()
    for layer in bank.layers:
        found.update(f"{layer.name} {layer.weight.shape}".encode())
        found.update(layer.weight.tobytes())
    return found.hexdigest()[:16]
