"""All idealised filters: discrete Gaussian derivatives and their relatives, each a named family.

The forms are those of lindeberg2026modelling, and those that babaiee2024unveiling saw.
"""

from __future__ import annotations

from functools import lru_cache

from keyfilters.errors import KeyFiltersError, nearest
from keyfilters.receptive_fields.forms import KINDS, Family, Term
from keyfilters.sizes import Window

__all__ = ["BY_NAME", "BY_OPERATOR", "FAMILIES", "FREE", "KINDS", "MATCHED", "Family", "family",
           "formula_in", "in_window"]  # fmt: skip

# Operator -> order, symbol, name of the positive sign, name of the negative sign. A derivative of T
# with positive amplitude is bright on the negative side.
_SINGLE = {
    "0": (0, "", "smoothing", "inverted smoothing"),
    "d": (1, "δ{a}", "edge −{a}", "edge +{a}"),
    "d+": (1, "δ{a}+", "half-edge −{a} (off)", "half-edge +{a} (on)"),
    "d-": (1, "δ{a}−", "half-edge −{a} (on)", "half-edge +{a} (off)"),
    "dd": (2, "δ{a}{a}", "second derivative {a} (off)", "second derivative {a} (on)"),
}
# Operators along x and y -> name and joint group in `fit_idealized`.
_HALF, _FIRST, _SECOND = "one-sided or smoothing", "centred first", "second order"
_OPERATORS = {
    ("d", "0"): ("dx", _FIRST),
    ("0", "d"): ("dy", _FIRST),
    ("d+", "0"): ("dx+", _HALF),
    ("d-", "0"): ("dx-", _HALF),
    ("0", "d+"): ("dy+", _HALF),
    ("0", "d-"): ("dy-", _HALF),
    ("dd", "0"): ("dxx", _SECOND),
    ("0", "dd"): ("dyy", _SECOND),
    ("d", "d"): ("dxy", _SECOND),
    ("0", "0"): ("smooth", _HALF),
}


def _separable(x: str, y: str) -> Family:
    """Family of one pair of operators, of order 0 to 2 along each axis."""
    order_x, symbol_x, *names_x = _SINGLE[x]
    order_y, symbol_y, *names_y = _SINGLE[y]
    half = bool({"d+", "d-"} & {x, y})
    total = order_x + order_y
    if order_x and order_y:
        ordinal = {2: "mixed", 3: "third", 4: "fourth"}[total]
        stem = f"{ordinal} derivative {'x' * order_x}{'y' * order_y}"
        stem = f"half-grid {stem}" if half else stem
        kind, positive, negative = "higher derivative", f"{stem} (+)", f"{stem} (−)"
    else:
        kind = ("centre", "half-edge" if half else "edge", "second derivative")[total]
        axis, names = ("y", names_y) if order_y else ("x", names_x)
        positive, negative = (name.format(a=axis) for name in names)
    symbols = (symbol_x.format(a="x"), symbol_y.format(a="y"), "T(σx, σy)")
    operator, group = _OPERATORS.get((x, y), ("", ""))
    return Family(
        f"x:{x} y:{y}", kind, positive, negative, " ".join(filter(None, symbols)),
        (Term(x, y, scales=("sigma_x", "sigma_y")),), ("sigma_x", "sigma_y"), rank=total + half,
        separable=(x, y), shift=None if total else (0.0, 0.0), operator=operator, group=group,
    )  # fmt: skip


def _diagonal(up: bool) -> list[Family]:
    """Edges and second derivatives along x+y (`up`) or x−y."""
    sign, along = (1.0, "+") if up else (-1.0, "−")
    diagonal = f"x{along}y"
    minus, plus = f"−x{'−' if up else '+'}y", f"+x{along}y"
    families = [
        Family(
            f"diagonal edge {diagonal}", "edge", f"diagonal edge {minus}", f"diagonal edge {plus}",
            f"(δx {along} δy) T(σ)", (Term("d", "0"), Term("0", "d", sign)), rank=2, matched=False,
        ),
        Family(
            f"diagonal second derivative {diagonal}", "second derivative",
            f"second derivative {diagonal} (off)", f"second derivative {diagonal} (on)",
            f"(δxx {along} 2δxy + δyy) T(σ)",
            (Term("dd", "0"), Term("0", "dd"), Term("d", "d", 2 * sign)), rank=2, matched=False,
        ),
    ]  # fmt: skip
    for step, first, second in (("+", "off", "on"), ("-", "on", "off")):
        # Forward: f(x+1, y±1) − f(x, y). Backward: f(x, y) − f(x−1, y∓1).
        weight = 1.0 if step == "+" else -1.0
        step_y = step if up else {"+": "-", "-": "+"}[step]
        families.append(Family(
            f"diagonal half-edge {diagonal} {step}", "half-edge",
            f"diagonal half-edge {minus} ({first})", f"diagonal half-edge {plus} ({second})",
            f"one-sided difference of T(σ) along {diagonal}",
            (Term(f"shift{step}", f"shift{step_y}", weight), Term("0", "0", -weight)), rank=3,
        ))  # fmt: skip
    return families


def _off_grid(x: str, y: str) -> list[Family]:
    """Centres whose middle lies half a tap off the grid."""
    # average+ takes f(n+1) in, which moves the kernel towards −.
    step = {"0": (0.0, ""), "average+": (-0.5, "−{a}½"), "average-": (0.5, "+{a}½")}
    moved = step[x][1].format(a="x") + step[y][1].format(a="y")
    shift = (step[x][0], step[y][0])
    return [
        Family(
            f"shifted smoothing {moved}", "off-grid centre", f"off-grid smoothing {moved}",
            f"off-grid inverted smoothing {moved}", f"T(σ) moved by {moved}", (Term(x, y),),
            rank=2, shift=shift,
        ),
        Family(
            f"shifted laplacian {moved}", "off-grid centre", f"off-grid off-centre {moved}",
            f"off-grid on-centre {moved}", f"∇²₅ T(σ) moved by {moved}",
            (Term(f"dd {x}", y), Term(x, f"dd {y}")), rank=3, shift=shift,
        ),
    ]  # fmt: skip


_LAPLACIAN = (Term("dd", "0"), Term("0", "dd"))
_ROUND = (
    Family(
        "laplacian", "centre", "off-centre", "on-centre", "∇²₅ T(σ)", _LAPLACIAN, rank=1,
        shift=(0.0, 0.0), operator="laplacian", group=_SECOND,
    ),
    Family(
        "sharpen", "centre", "on-centre", "off-centre", "δ₀ − α ∇²₅ T(σ)",
        (
            Term("0", "0", scales=("", "")),
            *(term._replace(weight=lambda p: -p["alpha"]) for term in _LAPLACIAN),
        ),
        ("sigma", "alpha"), rank=2, shift=(0.0, 0.0), operator="sharpen", group="sharpening",
    ),
    Family(
        "cross", "cross or square", "cross (on)", "cross (off)", "T(σ, σ_long) + T(σ_long, σ)",
        (
            Term("0", "0", scales=("sigma", "sigma_long")),
            Term("0", "0", scales=("sigma_long", "sigma")),
        ),
        ("sigma", "sigma_long"), rank=3,
    ),
    Family(
        "square", "cross or square", "square (on)", "square (off)", "3×3 box ∗ T(σ)",
        (Term("box", "box"),), rank=3, smallest=5,
    ),
)  # fmt: skip

_SHIFTS = ("0", "average+", "average-")

FAMILIES: tuple[Family, ...] = (
    *(_separable(x, y) for x in _SINGLE for y in _SINGLE),
    *_ROUND,
    *_diagonal(up=True),
    *_diagonal(up=False),
    *(f for x in _SHIFTS for y in _SHIFTS if (x, y) != ("0", "0") for f in _off_grid(x, y)),
)

_SMOOTHING = (Term("0", "0"),)
_ALONG = (
    Term("d", "0", lambda p: p["angle"].cos()),
    Term("0", "d", lambda p: p["angle"].sin()),
)
_ALONG_TWICE = (
    Term("dd", "0", lambda p: p["angle"].cos() ** 2),
    Term("0", "dd", lambda p: p["angle"].sin() ** 2),
    Term("d", "d", lambda p: (2 * p["angle"]).sin()),
)


def _oriented(name: str, kind: str, sign: str, formula: str, terms: tuple[Term, ...]) -> Family:
    names = (f"{name} (off)", f"{name} (on)") if sign else (name, name)
    return Family(
        name, kind, *names, formula, terms, ("sigma", "angle"), rank=3, names_patterns=False
    )


def _rotated(
    stem: str, kind: str, formula: str, terms: tuple[Term, ...], positive: str, negative: str
) -> Family:
    return Family(
        f"rotated {stem}", kind, f"rotated {positive}", f"rotated {negative}",
        f"{formula}T(σ along φ, σ⊥ across)", terms, ("sigma", "sigma_across", "angle"),
        rank=4, smallest=5, rotated=True, names_patterns=False,
    )  # fmt: skip


# Families with a free angle or a second scale; the rotated ones have σ along φ and σ⊥ across it.
FREE: tuple[Family, ...] = (
    _oriented("oriented edge", "edge", "", "(cos φ δx + sin φ δy) T(σ)", _ALONG),
    _oriented(
        "oriented second derivative", "second derivative", "±",
        "(cos² φ δxx + 2 cos φ sin φ δxδy + sin² φ δyy) T(σ)", _ALONG_TWICE,
    ),
    Family(
        "difference of Gaussians", "centre", "on-centre", "off-centre", "T(σ) − T(σ_surround)",
        (Term("0", "0"), Term("0", "0", -1.0, ("sigma_surround", "sigma_surround"))),
        ("sigma", "sigma_surround"), rank=3, names_patterns=False,
    ),
    _rotated("smoothing", "centre", "", _SMOOTHING, "smoothing", "inverted smoothing"),
    _rotated("edge", "edge", "(cos φ δx + sin φ δy) ", _ALONG, "edge", "edge"),
    _rotated(
        "second derivative", "second derivative", "(cos φ δx + sin φ δy)² ", _ALONG_TWICE,
        "second derivative (off)", "second derivative (on)",
    ),
)  # fmt: skip

BY_NAME = {form.name: form for form in (*FAMILIES, *FREE)}
BY_OPERATOR = {form.operator: form for form in FAMILIES if form.operator}
# What `match` tries, separable families first.
MATCHED = tuple(
    sorted((f for f in BY_NAME.values() if f.matched), key=lambda f: f.separable is None)
)


@lru_cache(maxsize=64)
def in_window(forms: tuple[Family, ...], size: Window) -> tuple[Family, ...]:
    """Return families as they are in a window, in their order; see `Family.in_window`.

    >>> [form.name for form in in_window(MATCHED, (1, 7))][:5]
    ['x:0 y:0', 'x:d y:0', 'x:d+ y:0', 'x:d- y:0', 'x:dd y:0']
    """
    return tuple(found for form in forms if (found := form.in_window(size)) is not None)


def formula_in(name: str, size: Window) -> str:
    """Return the formula of a family as it is drawn in a window ``(k_y, k_x)``.

    >>> formula_in("x:d y:0", (5, 5)), formula_in("x:d y:0", (1, 5))
    ('δx T(σx, σy)', 'δx T(σx)')
    """
    form = family(name)
    return (form.in_window(size) or form).formula


def family(name: str) -> Family:
    """Return a family by its name.

    Raises:
        KeyFiltersError: there is none; the nearest names are listed.

    >>> family("x:d y:0").formula
    'δx T(σx, σy)'
    """
    if name not in BY_NAME:
        raise KeyFiltersError(f"no idealised family is called {name!r}{nearest(name, BY_NAME)}")
    return BY_NAME[name]
