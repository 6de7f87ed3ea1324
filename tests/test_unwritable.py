"""Every function that saves, where it cannot: one error that names the file, nothing is left."""

from __future__ import annotations

import ast
import errno
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

import keyfilters as kf
import keyfilters.reproduction as reproduction
from keyfilters.bank import Layer
from keyfilters.clusters.feed_forward import FeedForwardAutoencoder
from keyfilters.clusters.pattern_book import PatternBook
from keyfilters.clusters.principal_curve import PrincipalCurve
from keyfilters.clusters.stored import save_nested
from keyfilters.discovery.progress_file import ProgressFile
from keyfilters.errors import refuse_unwritten, shown
from keyfilters.experiments.grid import run_grid
from keyfilters.experiments.record import write_record
from keyfilters.experiments.run import Run
from keyfilters.files import move_whole, temporary_folder, write_whole
from keyfilters.report.check_page import write_check_report
from keyfilters.report.compare_page import write_comparison_report
from keyfilters.report.discovery_page import write_discovery_report
from keyfilters.report.experiment_page import write_experiment
from keyfilters.report.reproduction_page import write_reproduction_report
from keyfilters.report.template import write_page
from keyfilters.surgery.files import replace_in_file
from keyfilters.tensor_files import save_tensors
from keyfilters.training.results import Trained, write_results, write_weights
from tests.cli.places import contents
from tests.cli.test_hostile_places import PLACES, at_most, refusing
from tests.experiments.in_process import InProcess
from tests.report.test_experiment_page import example

WEIGHT = np.random.default_rng(0).normal(size=(80, 5, 5)).astype(np.float32)
BANK = kf.FilterBank([Layer("net", "conv", WEIGHT, None, None, 0.0)])
KEYS = kf.KeySet.from_filters(WEIGHT[:3])
NET = nn.Conv2d(80, 80, 5, groups=80)
TRAINED = Trained(NET, None, pd.DataFrame(), {"best_epoch": 1})
Write = Callable[[Path], Any]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    state = {"stem.weight": torch.ones(80, 3, 3, 3), "conv.weight": torch.tensor(WEIGHT)[:, None]}
    torch.save(state, folder / "net.pth")
    save_file(state, folder / "net.safetensors")
    onnx = pytest.importorskip("onnx")
    tensor = onnx.numpy_helper.from_array(WEIGHT[:, None], "w")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=80)
    made = [onnx.helper.make_tensor_value_info(x, 1, [1, 80, 9, 9]) for x in "xy"]
    graph = onnx.helper.make_graph([node], "g", made[:1], made[1:], [tensor])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset]), folder / "net.onnx")
    return folder


@pytest.fixture(scope="module")
def atlas() -> kf.Atlas:
    return kf.Atlas(seed=0, seeds=1).fit(BANK)


@pytest.fixture(scope="module")
def functions(source: Path, atlas: kf.Atlas) -> dict[str, tuple[str, Write]]:
    """Return every function that saves, with the ending of what it writes."""
    unit = atlas.bank_.stack(5)[0].reshape(-1, 25)
    book = PatternBook.of(atlas, (5, 5))
    curve = PrincipalCurve().fit(unit)
    check, compared = kf.check(BANK), kf.compare(BANK, BANK)
    found = kf.discover_keys(BANK, keys=3, count=8, rounds=1, kinds=["kmeans"])
    measured = reproduction.reproduce("echos")
    monitor = kf.Monitor(NET)
    run = Run({"a": 1}, 0, "tests.experiments.workers:measure", {})

    def watch(path: Path) -> None:
        monitor.path = path
        monitor.measure(1)

    writers: dict[str, tuple[str, Write]] = {
        "FilterBank.save": (".safetensors", BANK.save),
        "Atlas.save": ("", atlas.save),
        "PatternBook.save": (".safetensors", book.save),
        "PrincipalCurve.save": (".safetensors", curve.save),
        "save_nested": (".safetensors", lambda path: save_nested(path, {"a": unit}, "x")),
        "save_tensors": (".safetensors", lambda path: save_tensors(path, {"a": unit}, {})),
        "write_whole": (".txt", lambda path: write_whole(path, "x" * 9000)),
        "write_page": (".html", lambda path: write_page("x" * 9000, path)),
        "write_report": (".html", lambda path: kf.write_report(atlas, path)),
        "write_check_report": (".html", lambda path: write_check_report(check, path)),
        "write_comparison_report": (".html", lambda x: write_comparison_report(compared, x)),
        "write_discovery_report": (".html", lambda x: write_discovery_report({"5": found}, x)),
        "write_experiment": (".html", lambda path: write_experiment(example(), path)),
        "write_reproduction_report": (".html", lambda x: write_reproduction_report(measured, x)),
        "write_record": ("", lambda path: write_record(example(), path)),
        "write_weights": (".safetensors", lambda path: write_weights(path, NET)),
        "write_results": ("", lambda path: write_results(path, TRAINED)),
        "Monitor": (".parquet", watch),
        "ProgressFile": ("", lambda path: ProgressFile(path, "x" * 20).add({"a": "b" * 9000})),
        "run_grid": ("", lambda path: run_grid([run], path, executor=InProcess())),
    }
    for suffix in (".txt", ".npy", ".npz", ".safetensors"):
        writers[f"KeySet.save {suffix}"] = (suffix, KEYS.save)
    for suffix in (".pth", ".safetensors", ".onnx"):
        file = source / f"net{suffix}"
        writers[f"replace_in_file {suffix}"] = (
            suffix,
            lambda path, file=file: replace_in_file(file, path, KEYS),  # type: ignore[misc]
        )
    return writers


# Parts of those above, or nothing that makes a file.
INNER = {"save_estimator", "write_table", "write_value", "write_keys", "write_", "write_all_"}
INNER |= {"FeedForwardAutoencoder.save", "save", "write", "write_parquet"}


def test_every_function_that_saves_is_tried(functions: dict[str, tuple[str, Write]]) -> None:
    known = {x.split()[0] for x in functions}
    named: set[str] = set()
    for path in Path(kf.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        held = {x: y.name for y in ast.walk(tree) if isinstance(y, ast.ClassDef) for x in y.body}
        for x in ast.walk(tree):
            if isinstance(x, ast.FunctionDef) and x.name.partition("_")[0] in ("save", "write"):
                named.add(f"{held[x]}.{x.name}" if x in held and x.name == "save" else x.name)
    assert {"FilterBank.save", "write_report"} <= named
    assert named - known - INNER == set()
    assert issubclass(FeedForwardAutoencoder, type(PrincipalCurve()).__mro__[1])  # as its save


def problems(error: BaseException, path: Path, folder: Path) -> str:
    text = str(error)
    if not isinstance(error, kf.KeyFiltersError) or "\n" in text:
        return f"{type(error).__name__}: {text}"
    if ".unfinished" in text or str(folder)[:60] not in text:
        return f"does not name {path}: {text}"
    return "" if any(x in text for x in (" give ", " free ", " raise ", " move ")) else text


@pytest.mark.parametrize("place", [*PLACES, "limited", "limited, old files"])
def test_what_cannot_be_saved_is_one_error(
    functions: dict[str, tuple[str, Write]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    wrong = {}
    for number, (name, (suffix, save)) in enumerate(functions.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        limited = place.startswith("limited")
        parent = folder / "new" / "out" if limited else PLACES[place](folder)
        path = parent / f"x{suffix}"
        if place.endswith("old files"):
            save(path)
        before = contents(folder)
        refused = {"read-only": errno.EROFS, "full": errno.ENOSPC}.get(place)
        with monkeypatch.context() as patch, at_most(1) if limited else nullcontext():
            if refused is not None:
                patch.setattr(os, "mkdir", refusing(refused, folder)(os.mkdir))
            try:
                save(path)
                wrong[name] = "nothing raised"
            except Exception as error:
                if said := problems(error, path, folder):
                    wrong[name] = said
        left = {x for x, y in contents(folder).items() if before.get(x, b"") != y}
        if left and name != "ProgressFile":  # to which lines are added
            wrong[name] = f"{wrong.get(name, '')} left {sorted(left)}"
    assert wrong == {}


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_errors_of_libraries_that_write(error: Exception) -> None:
    with pytest.raises(kf.KeyFiltersError) as raised, refuse_unwritten("x"):
        raise error
    assert "cannot write x" in str(raised.value) and "same command" in str(raised.value)
    with pytest.raises(RuntimeError, match="of our own"), refuse_unwritten("x"):
        raise RuntimeError("a fault of our own")


def test_paths_in_messages() -> None:
    assert shown(Path("a", ".unfinished-1-01234567", "b")) == str(Path("a", "b"))
    assert shown(".unfinished-drops/x") == ".unfinished-drops/x"
    long = shown("/" + "x" * 5000)
    assert len(long) < 400 and "…" in long


@pytest.mark.parametrize("links", [True, False])
def test_files_are_moved_all_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", refusing(errno.EPERM, tmp_path)(os.link))
    new, out = tmp_path / "new", tmp_path / "out"
    for folder, text in ((new, "new"), (out, "old")):
        folder.mkdir()
        (folder / ("x" * 255)).write_text(text)
    (new / "a").write_text("new")
    (new / "z").write_text("new")
    (out / "z").mkdir()
    before = contents(out)
    with pytest.raises(OSError, match="z"):
        move_whole(sorted(new.iterdir()), out)
    assert contents(out) == before
    (out / "z").rmdir()
    for file in new.iterdir():
        file.unlink()
    for name in ("a", "x" * 255, "z"):
        (new / name).write_text("new")
    move_whole(sorted(new.iterdir()), out)
    assert contents(out) == dict.fromkeys(("a", "x" * 255, "z"), b"new")
    assert contents(new) == {}


def test_no_place_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(kf.KeyFiltersError, match="TMPDIR"), temporary_folder():
        pass


def test_an_archive_that_finds_no_room_is_not_called_damaged(source: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "nets"), "zip", source)
    assert kf.read(archive).sizes
    with at_most(1000), pytest.raises(kf.KeyFiltersError, match="TMPDIR") as error:
        kf.read(archive)
    assert "damaged" not in str(error.value)
