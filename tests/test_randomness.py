"""Every public function that draws is a function of its seed, and draws from nothing global."""

from __future__ import annotations

import ast
import importlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.clusters.principal_curve import PrincipalCurve
from keyfilters.seeds import LARGEST_SEED
from keyfilters.training import Data, Recipe, random_crops, train
from keyfilters.treatment import FilterRecipe, Treatment, initialize_by_name_

ROOMS = ("", ".init", ".plot", ".scalespace", ".surgery", ".training", ".treatment")
DRAWS = ("seed", "generator")
B = "lindeberg2026-B"


def public() -> dict[str, Callable[..., Any]]:
    """Public functions, classes and methods that take a seed or a generator, by their name."""
    found: dict[str, Callable[..., Any]] = {}
    for room in ROOMS:
        module = importlib.import_module(f"keyfilters{room}")
        for name in module.__all__:
            thing = getattr(module, name)
            parts = {name: thing} if callable(thing) else {}
            if inspect.isclass(thing):
                methods = (x for x in vars(thing) if not x.startswith("_"))
                parts |= {f"{name}.{x}": getattr(thing, x) for x in methods}
            for label, part in parts.items():
                if callable(part) and set(DRAWS) & set(inspect.signature(part).parameters):
                    found[label] = part
    return found


def noise(size: int, count: int = 150, seed: int = 0) -> np.ndarray:
    """Filters that are no keys: smooth noise."""
    drawn = np.random.default_rng(seed).normal(size=(count, size, size))
    return (drawn + np.roll(drawn, 1, 1) + np.roll(drawn, 1, 2)).astype(np.float32)


def bank(size: int = 5, seed: int = 0) -> kf.FilterBank:
    layers = [
        Layer("net", name, part, (1, 1), (1, 1), depth)
        for name, part, depth in zip(
            "ab", np.split(noise(size, seed=seed), 2), (0.0, 1.0), strict=True
        )
    ]
    return kf.FilterBank(layers)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 70, 1), nn.Conv2d(70, 70, 5, groups=70, padding=2), nn.BatchNorm2d(70),
            nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(70, 2),
        )  # fmt: skip


def images(count: int) -> Tensor:
    drawn = np.random.default_rng(4).integers(0, 255, (count, 3, 12, 12), dtype=np.uint8)
    return torch.from_numpy(drawn)


def changed(change: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    net = network()
    return [change(net, *arguments, **options), net.state_dict()]


def matched(seed: int) -> Any:
    return kf.match(noise(5, 60), null="white", null_draws=60, seed=seed)


def discovered(seed: int) -> Any:
    found = kf.discover_keys(bank(), keys=3, count=6, kinds=["lines"], rounds=1, seed=seed)
    return [found.keys, found.curve]


def compared(seed: int) -> Any:
    found = kf.compare(bank(), bank(seed=1), seed=seed, sample=20)
    return [found.layers, found.filters, found.totals]


def monitored(seed: int) -> Any:
    net = network()
    net[1].weight.data[:, 0] = torch.from_numpy(noise(5, 70))
    monitor = kf.Monitor(net, every=1, sample=30, seed=seed)
    monitor.step()
    return monitor.table


def learned(seed: int) -> Any:
    data = Data("drawn", images(64), torch.arange(64) % 2, images(8), torch.arange(8) % 2, "ab")
    made = Recipe.from_dict({
        "seed": seed, "batch": {"size": 16}, "schedule": {"steps": 4},
        "augmentation": {"crop": 2, "flip": True, "mixup": 0.2, "cutmix": 0.5, "erasing": 0.5},
    })  # fmt: skip
    done = train(made, model=network(), data=data, device="cpu")
    return [done.model.state_dict(), done.history.drop(columns="seconds")]


def by_recipe(seed: int) -> Any:
    recipe = FilterRecipe.from_dict({"seed": seed, "filters": {"initialize": "trunc-normal"}})
    return changed(recipe.filters.apply_, recipe.seed)


def filled(fill: Callable[..., Any], *arguments: Any) -> Callable[[int], Any]:
    def call(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return fill(torch.empty(12, 1, 5, 5), *arguments, generator=generator)

    return call


# What is called for each, with a seed.
CALLS: dict[str, Callable[[int], Any]] = {
    "Atlas": lambda s: kf.Atlas(s, seeds=1, counts=(1, 4), fewest=50).fit(bank()).table_,
    "Monitor": monitored,
    "KeySet.named": lambda s: kf.KeySet.named("covariance:6", 5, s, bank=bank()),
    "KeySet.random": lambda s: kf.KeySet.random(5, 4, s),
    "check": lambda s: kf.check(bank(), seed=s).findings,
    "compare": compared,
    "discover_keys": discovered,
    "initialize_filters_": lambda s: changed(kf.initialize_filters_, "covariance", seed=s),
    "learn_keys": lambda s: kf.learn_keys(noise(5), 6, seed=s),
    "match": matched,
    "null_bank": lambda s: kf.null_bank(bank(), "covariance", s).stack(5)[0],
    "parametrize_filters_": lambda s: changed(
        kf.parametrize_filters_, kf.KeySet.published(B, 5), assignment="random", seed=s
    ),
    "read": lambda s: kf.read("timm:test_convnext?pretrained=false", seed=s).stack(7)[0],
    "replace_filters_": lambda s: changed(
        kf.replace_filters_, kf.KeySet.published(B, 5), images=images(4) / 255, seed=s
    ),
    "transfer_filters_": lambda s: changed(
        kf.transfer_filters_, bank(), control="tap-shuffled", seed=s
    ),
    "universality": lambda s: kf.universality({"a": bank(), "b": bank(seed=1)}, 5, 4, seed=s),
    "center_surround_": filled(kf.init.center_surround_),
    "covariance_": filled(kf.init.covariance_, 0.5),
    "impulse_": filled(kf.init.impulse_),
    "key_": filled(kf.init.key_, torch.tensor(kf.KeySet.published(B, 5).filters)),
    "trunc_normal_": filled(kf.init.trunc_normal_),
    "random_crops": lambda s: random_crops(
        {"a": images(1)[0].permute(1, 2, 0).numpy()}, 3, 8, seed=s
    ),
    "Recipe": learned,
    "FilterRecipe": by_recipe,
    "Treatment.apply_": lambda s: changed(Treatment(keys=B, assignment="random").apply_, s),
    "initialize_by_name_": lambda s: changed(initialize_by_name_, "impulse", s),
}
# These look for an optimum, and another seed may find the same one; or draw where it matters not.
MAY_AGREE = {"check", "learn_keys", "universality"}


def bits(found: Any) -> Iterator[bytes]:
    """Take a result apart down to its numbers and texts."""
    if isinstance(found, kf.KeySet):
        found = found.filters
    if isinstance(found, (pd.DataFrame, Mapping)):
        for name, value in found.items():
            yield str(name).encode()
            yield from bits(value)
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from bits(value)
    elif isinstance(found, (Tensor, np.ndarray, pd.Series)):
        array = np.asarray(found.detach() if isinstance(found, Tensor) else found)
        yield (array if array.dtype.kind in "fiub" else array.astype(str)).tobytes()
    else:
        yield repr(found).encode()


def global_states() -> list[bytes]:
    numpy = np.random.get_state()  # noqa: NPY002
    return [*bits([torch.get_rng_state(), repr(numpy), repr(random.getstate())])]


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves that are hardly trained."""
    monkeypatch.setitem(PrincipalCurve.__init__.__kwdefaults__, "steps", 20)


def test_every_public_function_with_a_seed_is_called_here() -> None:
    assert set(public()) == set(CALLS)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("name", CALLS)
def test_a_result_is_a_function_of_the_seed_and_of_nothing_global(name: str) -> None:
    call, found = CALLS[name], []
    for state, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(state)
        np.random.seed(state)  # noqa: NPY002
        random.seed(state)
        before = global_states()
        found.append([*bits(call(seed))])
        # The first call imports: rich draws a number while it is imported.
        assert len(found) == 1 or global_states() == before, "the caller's generators have moved"
    first, again, other = found
    assert again == first
    assert name in MAY_AGREE or other != first


DRAWING = {
    "torch": {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli"},
    "method": {"normal_", "uniform_", "bernoulli_", "random_", "exponential_", "geometric_"},
    "numpy": {"default_rng", "Generator", "SeedSequence", "get_state", "set_state", "seed"},
    "random": {"Random", "seed", "getstate", "setstate"},
}


def global_draws(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Calls that draw from a generator of the whole process, by line.

    What is drawn inside ``with torch.random.fork_rng`` is seeded there, and gives the state back.
    """
    own = [x for x in ast.walk(tree) if isinstance(x, ast.With) and "fork_rng" in ast.unparse(x)]
    forked = {id(x) for block in own for x in ast.walk(block)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        given = {x.arg for x in node.keywords}  # None: by two stars
        mine = id(node) in forked or bool(given & {"generator", None})
        if (
            (owner == "torch" and name in DRAWING["torch"] and not mine)
            or (name in DRAWING["method"] and not mine)
            or (owner in ("np.random", "numpy.random") and name not in DRAWING["numpy"])
            or (name == "default_rng" and not node.args and not given)
            or (owner == "random" and name not in DRAWING["random"])
        ):
            yield node.lineno, ast.unparse(node)


def test_nothing_is_drawn_from_a_global_generator() -> None:
    root = Path(kf.__file__).parent
    found = [
        (str(path.relative_to(root)), *draw)
        for path in root.rglob("*.py")
        for draw in global_draws(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("torch.rand(3)", 1),
        ("torch.randn(3, generator=g)", 0),
        ("torch.randn(3, **source)", 0),
        ("with torch.random.fork_rng():\n    torch.rand(3)\ntorch.randperm(3)", 1),
        ("w.normal_(0, 1)", 1),
        ("np.random.normal(3)", 1),
        ("np.random.default_rng()", 1),
        ("np.random.default_rng(seed).normal(3)", 0),
        ("random.shuffle(x)", 1),
        ("rng.random(3)", 0),
    ],
)
def test_global_draws_are_seen(text: str, number: int) -> None:
    assert len([*global_draws(ast.parse(text))]) == number


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range_are_refused_in_one_sentence(seed: int) -> None:
    bank = kf.read(torch.nn.Conv2d(64, 64, 3, groups=64))
    filters = bank.stack(3)[0]
    for call in (
        lambda: kf.KeySet.random(4, 3, seed=seed),
        lambda: kf.null_bank(bank, "white", seed),
        lambda: kf.match(filters, seed=seed),
        lambda: kf.read("timm:convnext_atto?pretrained=false", seed=seed),
    ):
        with pytest.raises(kf.KeyFiltersError, match=f"seed must be between 0 and .*, got {seed}"):
            call()


def test_the_largest_seed_works_with_images() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=8, padding=1))
    keys, images = kf.KeySet.random(4, 3, seed=LARGEST_SEED), torch.ones(4, 8, 8, 8)
    report = kf.replace_filters_(net, keys, images=images, seed=LARGEST_SEED)
    assert report["left"].tolist() == [""]
