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

In a recipe, ``filters = "keys?learn=bias"`` says the same, or a section, option by option::

    [filters]
    keys = "lindeberg2026-B"
    learn = ["bias"]
    assign_from = "timm:convnextv2_tiny.fcmae_ft_in1k"
"""

from __future__ import annotations

import hashlib
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator
from torch import nn

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.learned_filters import METHODS
from keyfilters.nulls import NULLS
from keyfilters.query_strings import parse
from keyfilters.sources import read
from keyfilters.surgery.parametrize import LEARNABLE
from keyfilters.surgery.transfer import CONTROLS
from keyfilters.training import Recipe, section
from keyfilters.treatment.treated import IDEALIZED, Treated, treat_

__all__ = ["FilterRecipe", "Treated", "Treatment"]

DEFAULT_KEYS = "lindeberg2026-B"
# What each kind of treatment does by itself, and its options.
KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "learned": ({}, ()),
    "frozen": ({"freeze": True}, ()),
    IDEALIZED: ({"keys": IDEALIZED}, ("assign_from",)),
    "keys": (
        {"keys": DEFAULT_KEYS},
        ("keys", "keys_from", "learn", "assignment", "drawn", "assign_from", "unit_norm"),
    ),
    "transfer": ({}, ("from", "control", "freeze")),
}
FLAGS = ("drawn", "unit_norm", "freeze")


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
        if kind not in KINDS:
            known = (*KINDS, "initialize:SCHEME")
            expected = f"{', '.join(known)} are known{nearest(kind, known)}"
            raise KeyFiltersError(f"{kind!r} cannot be done to filters; {expected}")
        start, accepted = KINDS[kind]
        values = dict(start)
        for name, value in options.items():
            if name not in accepted:
                listed = ", ".join(accepted) or "none"
                tail = nearest(name, accepted)
                raise KeyFiltersError(f"{kind} has no option {name!r}; it has {listed}{tail}")
            if name in FLAGS and value not in (0, 1):
                raise KeyFiltersError(f"{text!r}: {name} is {value!r}; 0 or 1 is expected")
            if name == "drawn":
                values |= {"assignment": "random"} if value else {}
            elif name == "learn":
                values["learn"] = tuple(value) if isinstance(value, list) else (value,)
            elif name in FLAGS:
                values[name] = bool(value)
            else:
                typed = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                values["transfer" if name == "from" else name] = typed
        if kind == "transfer" and not values.get("transfer"):
            raise KeyFiltersError(f"{text!r} needs a source; type transfer?from=SOURCE")
        return cls(**values)

    def __str__(self) -> str:
        """The line that `parse` reads as an equal treatment, where there is one."""
        if self.initialize and not self.keys:
            join = "&" if "?" in self.initialize else "?"
            return f"initialize:{self.initialize}" + f"{join}freeze=1" * self.freeze
        kind = "keys" if self.on_keys else self.keys or ("transfer" if self.transfer else "")
        kind = kind or ("frozen" if self.freeze else "learned")
        said = []
        for name in KINDS[kind][1]:
            value = self.transfer if name == "from" else getattr(self, name, None)
            value = ",".join(value) if isinstance(value, tuple) else value
            if value and (name, value) != ("assignment", "trained"):
                said.append(f"{name}={int(value) if isinstance(value, bool) else value}")
        return f"{kind}?{'&'.join(said)}" if said else kind

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
        kind = "keys" if self.on_keys else self.keys or ("frozen" if self.freeze else "learned")
        shown: dict[str, Any] = {"filters": kind, "keys": self.keys if self.on_keys else None}
        shown["assignment"] = self.assignment if self.on_keys else None
        return shown | {name: name in self.learn if self.on_keys else None for name in LEARNABLE}

    @property
    def on_keys(self) -> bool:
        """Whether the filters are kept on a few keys."""
        return bool(self.keys) and self.keys != IDEALIZED

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
        found: dict[str, str] = {}
        for name in (self.transfer, self.assign_from, self.keys_from, str(options.get("bank", ""))):
            if name and not name.startswith("@"):
                digest = hashlib.sha256()
                for layer in read(name).layers:
                    digest.update(f"{layer.name} {layer.weight.shape}".encode())
                    digest.update(layer.weight.tobytes())
                found[name] = digest.hexdigest()[:16]
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


def _parsed(given: Any) -> Any:
    return Treatment.parse(given) if isinstance(given, str) else given


@section
class FilterRecipe(Recipe):
    """A recipe with a section ``[filters]``; without it, a recipe like any other.

    >>> recipe = FilterRecipe.from_dict({"filters": "keys?learn=bias"})
    >>> recipe.filters.keys, recipe.filters.learn
    ('lindeberg2026-B', ('bias',))
    """

    filters: Annotated[Treatment, BeforeValidator(_parsed)] = field(default_factory=Treatment)

    @property
    def changes_model(self) -> bool:
        """Whether the filters must be treated before `keyfilters.training.train`."""
        return self.filters != Treatment()

    def to_dict(self) -> dict[str, Any]:
        """Return nested dictionaries from which `from_dict` makes an equal recipe."""
        values = super().to_dict()
        del values["filters"]
        filters = self.filters.to_dict()
        return {**values, "filters": filters} if filters else values
