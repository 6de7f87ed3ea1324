"""Recipes: what they take, what they refuse, and that nothing is lost on the way to a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from keyfilters.errors import KeyFiltersError
from keyfilters.training import Recipe
from keyfilters.treatment import FilterRecipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))

FULL: dict[str, Any] = {
    "seed": 3,
    "precision": "bf16",
    "model": {"name": "a", "options": {"drop_path_rate": 0.1, "dims": [8, 16], "big": False}},
    "data": {"name": 'folder "x" \\ é', "classes": ["a", 3]},
    "optimiser": {"lr": 1e-05, "options": {"betas": [0.9, 0.95]}},
    "ema": {"decay": 0.5, "warmup": False},
}


def test_a_recipe_survives_its_file(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(FULL)
    (tmp_path / "r.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.load(tmp_path / "r.toml") == recipe == Recipe.from_dict(recipe.to_dict())
    assert recipe.data.classes == ("a", 3) and recipe.optimiser.lr == 1e-5


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_that_come_along(path: Path) -> None:
    FilterRecipe.load(path)


def test_changes_count_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[optimiser]\nlr = 0.1\n")
    changes = ("optimiser.lr=0.5", "seed = 4", "model.name=resnet18", "model.options.a=1")
    recipe = Recipe.load(tmp_path / "r.toml", *changes)
    assert (recipe.optimiser.lr, recipe.seed, recipe.model.name) == (0.5, 4, "resnet18")
    assert recipe.model.options == {"a": 1}
    for change in ("lr", "=3", "a.b.c.d=3"):
        with pytest.raises(KeyFiltersError, match=r"changes no recipe; type section.key=value"):
            Recipe.load(tmp_path / "r.toml", change)
    with pytest.raises(KeyFiltersError, match=r"'lrr' is no key of .optimiser.*names are: lr"):
        Recipe.load(tmp_path / "r.toml", "optimiser.lrr=1")
    with pytest.raises(KeyFiltersError, match="seed is no section"):
        Recipe.load(tmp_path / "r.toml", "seed=1", "seed.x=1")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(KeyFiltersError, match=r"cannot read .*none.toml: No such file"):
        Recipe.load(tmp_path / "none.toml")
    (tmp_path / "r.toml").write_text("lr = = 3")
    with pytest.raises(KeyFiltersError, match=r"r.toml is no TOML file"):
        Recipe.load(tmp_path / "r.toml")


def test_replace_keeps_the_rest_and_is_checked() -> None:
    recipe = Recipe.from_dict(FULL)
    other = replace(recipe, optimiser=replace(recipe.optimiser, lr=1))
    assert other.optimiser.lr == 1.0 and other.data == recipe.data
    with pytest.raises(KeyFiltersError, match=r"lr is -1"):
        replace(recipe.optimiser, lr=-1)


def test_the_learning_rate_of_256_images() -> None:
    recipe = Recipe.from_dict({"optimiser": {"base_lr": 8e-4}, "batch": {"size": 1024}})
    assert recipe.peak_lr == pytest.approx(3.2e-3)
    assert replace(recipe, batch=replace(recipe.batch, size=64)).peak_lr == pytest.approx(2e-4)
    assert Recipe.from_dict({"optimiser": {"lr": 0.5}}).peak_lr == 0.5 and Recipe().peak_lr == 1e-3


def test_steps() -> None:
    def steps(count: int, **schedule: Any) -> int:
        return Recipe.from_dict({"batch": {"size": 10}, "schedule": schedule}).steps(count)

    assert steps(109, epochs=3) == 30 and steps(100, epochs=0.25) == 3
    assert steps(100, epochs=3, steps=7) == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {}}, "'optimizer' is no key of the recipe.*nearest names are: optimiser"),
        ({"optimiser": {"learning": 1}}, r"'learning' is no key of \[optimiser\]; known are name"),
        ({"optimiser": 3}, "optimiser is 3; "),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is True; .*integer"),
        ({"seed": 1.5}, "seed is 1.5; .*integer"),
        ({"compile": 1}, "compile is 1; .*boolean"),
        ({"precision": "fp15"}, "'fp15'; one of no, fp16, bf16 is expected; the nearest"),
        ({"optimiser": {"lr": 0}}, "optimiser.lr is 0; greater than 0"),
        ({"optimiser": {"lr": float("nan")}}, "optimiser.lr is nan; a finite number"),
        (
            {"optimiser": {"lr": 0.1, "base_lr": 8e-4}},
            "lr is 0.1 and .*base_lr is 0.0008; give one",
        ),
        ({"optimiser": {"layer_decay": 1.1}}, "layer_decay is 1.1; "),
        ({"ema": {"decay": 1.0}}, "ema.decay is 1.0; "),
        ({"augmentation": {"label_smoothing": 1.0}}, "label_smoothing is 1.0; "),
        ({"schedule": {"epochs": "ten"}}, "schedule.epochs is 'ten'; .*number"),
        ({"batch": {"size": 0}}, "batch.size is 0; "),
        ({"batch": {"size": 9, "accumulation": 2}}, "batch.size 9 in 2 parts; a multiple"),
        ({"data": {"classes": "ab"}}, "data.classes is 'ab'; "),
        ({"model": {"options": "x"}}, "model.options is 'x'; .*dictionary"),
        ({"checkpoint": {"keep": [3, -1]}}, "checkpoint.keep is -1"),
        ({"augmentation": {"erasing": 2}}, "augmentation.erasing is 2; "),
    ],
)
def test_values_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        Recipe.from_dict(values)


def test_a_recipe_that_is_extended(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Extended(Recipe):
        extra: tuple[str, ...] = ()

    made = Extended.from_dict({"seed": 2, "extra": ["a"]})
    assert (made.seed, made.extra, type(made)) == (2, ("a",), Extended)
    assert replace(made, seed=3).to_dict()["extra"] == ("a",)
    with pytest.raises(KeyFiltersError, match=r"'extr' is no key of the recipe.*extra"):
        Extended.from_dict({"extr": []})


def test_every_field_says_what_it_means() -> None:
    from pydantic import TypeAdapter

    schema = TypeAdapter(Recipe).json_schema()
    sections = [schema, *schema["$defs"].values()]
    fields = {name: x for one in sections for name, x in one["properties"].items()}
    undescribed = {name for name, x in fields.items() if "description" not in x and "$ref" not in x}
    assert undescribed == set()
    assert fields["layer_decay"]["exclusiveMinimum"] == 0 and fields["layer_decay"]["maximum"] == 1
