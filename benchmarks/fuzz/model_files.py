"""Small files of every format that the package reads, and what reads each; see `TARGETS`."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tests.sources.tiny_models import FILTERS, TINY

__all__ = ["TARGETS", "Marker", "Target"]


class Target(NamedTuple):
    """What is damaged, and what reads it.

    Attributes:
        make: writes files to a folder and returns the path that is read.
        read: reads it.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]


class Marker:
    """Where it is unpickled, it makes a folder: code was run."""

    def __reduce__(self) -> Any:
        return Path.mkdir, (Path("code was run"),)


def _model(path: Path) -> Any:
    import keyfilters as kf

    return kf.read(path)


def _hostile(kind: str) -> Callable[[Path], Path]:
    """Return what writes a file that holds a pickle which runs code."""

    def make(folder: Path) -> Path:
        import torch

        content = {"dw.weight": torch.from_numpy(FILTERS[:, None].copy()), "x": Marker()}
        path = folder / f"net.{kind}"
        if kind == "pt":
            torch.save(content, path)
        elif kind == "pkl":
            path.write_bytes(pickle.dumps(content, protocol=2))
        else:
            arrays: dict[str, Any] = {"x": np.array([Marker()], object), "dw.weight": FILTERS}
            np.savez(path, allow_pickle=True, **arrays)
        return path

    return make


def _archive(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        inside = folder / "inside"
        inside.mkdir(exist_ok=True)
        files = [TINY[x](inside) for x in ("safetensors", "plain_pickle", "onnx")]
        path = folder / f"models.{suffix}"
        if suffix == "zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in files:
                    archive.write(file, f"a/{file.name}")
        else:
            with tarfile.open(path, "w:gz") as packed:
                for file in files:
                    packed.add(file, f"a/{file.name}")
        for file in files:
            file.unlink()
        return path

    return make


def _shards(folder: Path) -> Path:
    whole = TINY["safetensors"](folder)
    whole.rename(folder / "model-00001-of-00001.safetensors")
    names = ("pw.weight", "dw.weight")
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def _bank(folder: Path) -> Path:
    _model(TINY["onnx"](folder)).save(folder / "bank.safetensors")
    (folder / "net.onnx").unlink()
    return folder / "bank.safetensors"


def _load_bank(path: Path) -> Any:
    import keyfilters as kf

    return kf.FilterBank.load(path)


def _keys(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import keyfilters as kf

        path = folder / f"keys.{suffix}"
        keys = kf.KeySet.random(3, 3)
        if suffix == "npy":
            np.save(path, keys.filters)
        elif suffix == "npz":
            np.savez(path, a=keys.filters[0], b=keys.filters[1])
        else:
            keys.save(path)
        return path

    return make


def _load_keys(path: Path) -> Any:
    import keyfilters as kf

    return kf.KeySet.from_file(path)


def _book(folder: Path) -> Path:
    import keyfilters as kf

    kf.load_atlas("zoo-5x5").save(folder / "book.safetensors")
    return folder / "book.safetensors"


def _atlas(folder: Path) -> Path:
    import keyfilters as kf
    from keyfilters.bank import Layer

    weight = np.random.default_rng(0).normal(size=(60, 3, 3)).astype(np.float32)
    bank = kf.FilterBank([Layer("net", "conv", weight, None, None, 0.0)])
    kf.Atlas(seed=0, seeds=1, fewest=16, counts=(1, 2, 4)).fit(bank).save(folder / "atlas")
    return folder / "atlas"


def _load_atlas(path: Path) -> Any:
    import keyfilters as kf

    return kf.load_atlas(path)


def _record(folder: Path) -> Path:
    from tests.report.test_experiment_page import example

    (folder / "record.json").write_text(json.dumps(example()))
    return folder / "record.json"


def _draw_record(path: Path) -> Any:
    from typer.testing import CliRunner

    from keyfilters.cli import app

    page = path.with_name("page.html")
    done = CliRunner().invoke(app, ["experiment", "page", str(path), "--out", str(page)])
    page.unlink(missing_ok=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def _result(folder: Path) -> Path:
    (folder / "result.json").write_text(json.dumps({"result": {"top1": 3.0}, "seconds": 1.0}))
    return folder / "result.json"


def _load_result(path: Path) -> Any:
    from keyfilters.experiments.results import read_record

    return read_record(path)


def _progress(folder: Path) -> Path:
    from keyfilters.discovery.progress_file import ProgressFile

    file = ProgressFile(folder, "0123456789abcdef")
    file.add({"gain": 1.5, "kept": [1, 2]})
    file.add({"gain": 2.5, "kept": [1]})
    return folder / "0123456789abcdef.jsonl"


def _load_progress(path: Path) -> Any:
    from keyfilters.discovery.progress_file import ProgressFile

    return ProgressFile(path.parent, path.stem)


def _idx(folder: Path) -> Path:
    from tests.training.test_load_data import write_idx

    for half, count in (("train", 20), ("t10k", 10)):
        pixels = np.zeros((count, 28, 28), np.uint8)
        write_idx(folder / "idx" / f"{half}-images-idx3-ubyte", pixels)
        write_idx(folder / "idx" / f"{half}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))
    return folder / "idx"


def _images(folder: Path) -> Path:
    from PIL import Image

    for label in ("a", "b"):
        for i, suffix in enumerate(("png", "jpg", "gif", "bmp", "webp", "tiff")):
            place = folder / "images" / label
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((6, 6, 3), 30 * i, np.uint8)).save(place / f"{i}.{suffix}")
    return folder / "images"


def _parquet(folder: Path) -> Path:
    from tests.training.test_parquet import write

    write(folder / "data" / "train-00000-of-00001.parquet", [0, 1] * 5)
    return folder / "data"


def _load_data(prefix: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        from keyfilters.training import load_data

        return load_data(f"{prefix}:{path}")

    return read


def _stored(path: Path) -> Any:
    from keyfilters.surgery.stored_weights import open_stored

    opened = open_stored(path)
    target = path.with_name(".written")
    opened[1](target, []) if isinstance(opened, tuple) else None
    target.unlink(missing_ok=True)
    return opened


def _lambda(folder: Path) -> Path:
    """Write a Keras archive whose layer holds code, as a Lambda layer does."""
    layer = {"class_name": "Lambda", "config": {"name": "l", "function": ["4wEAAAA=", None, None]}}
    path = TINY["keras_zip"](folder)
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(held["config.json"])
    config["config"]["layers"].insert(0, layer)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in {**held, "config.json": json.dumps(config).encode()}.items():
            archive.writestr(name, data)
    path.write_bytes(content.getvalue())
    return path


TARGETS: dict[str, Target] = {
    **{name: Target(make, _model) for name, make in TINY.items()},
    **{f"{x} that runs code": Target(_hostile(x), _model) for x in ("pt", "pkl", "npz")},
    "keras with a Lambda layer": Target(_lambda, _model),
    "zip of models": Target(_archive("zip"), _model),
    "tar.gz of models": Target(_archive("tar.gz"), _model),
    "index of shards": Target(_shards, _model),
    "saved bank": Target(_bank, _load_bank),
    **{f"keys .{x}": Target(_keys(x), _load_keys) for x in ("txt", "npy", "npz", "safetensors")},
    "saved patterns": Target(_book, _load_atlas),
    "saved atlas": Target(_atlas, _load_atlas),
    "record of an experiment": Target(_record, _draw_record),
    "result of a run": Target(_result, _load_result),
    "progress of a search": Target(_progress, _load_progress),
    "IDX images": Target(_idx, _load_data("fashion-mnist")),
    "folder of images": Target(_images, _load_data("imagefolder")),
    "parquet images": Target(_parquet, _load_data("hf")),
    "tflite to write back": Target(TINY["tflite"], _stored),
    "keras_h5 to write back": Target(TINY["keras_h5"], _stored),
    "openvino to write back": Target(TINY["openvino"], _stored),
}
