"""The registry of formats: how each is recognised, read and named. A reader is one entry here."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from keyfilters.errors import MissingExtraError, SourceError
from keyfilters.sources.content import Content, load_json

if TYPE_CHECKING:
    from keyfilters.bank import FilterBank

__all__ = [
    "FORMATS",
    "READERS",
    "Format",
    "companions",
    "folder_format",
    "format_table",
    "markdown_table",
    "recognise",
    "suffix_format",
]


NCNN = struct.pack("<I", 7767517)


@dataclass(frozen=True)
class Format:
    """One format of model files.

    Attributes:
        name: as its makers spell it.
        suffixes: usual endings of its files, in lower case; the first is the table's.
        reader: ``"module:function"`` in this package; ``(path, model) -> FilterBank``.
        looks: whether a file is of this format, by its bytes.
        extra: what to install, ``pip install 'keyfilters[extra]'``; empty if nothing.
        package: the package that this installs, by its import name.
        written: whether `keyfilters replace` writes it.
        companions: endings of files that belong to the model of the same stem.
        sets: whether a file may hold several sets of weights, chosen by ``FILE#SET``.
        refused: whether it is recognised only to say what to give instead.
    """

    name: str
    suffixes: tuple[str, ...]
    reader: str
    looks: Callable[[Content], bool]
    extra: str = ""
    package: str = ""
    written: bool = False
    companions: tuple[str, ...] = ()
    sets: bool = False
    refused: bool = False

    @property
    def ready(self) -> bool:
        """Whether what it needs is installed."""
        return not self.package or find_spec(self.package) is not None

    def read(self, path: Path, model: str, chosen: str = "") -> FilterBank:
        """Read one model.

        Args:
            path: the file or folder.
            model: name of the model in the bank's tables.
            chosen: the set of weights to read, where a file holds several.

        Raises:
            MissingExtraError: what the format needs is not installed.
            SourceError: the file is damaged or refused.
        """
        if not self.ready:
            raise MissingExtraError(f"reading {path.name} ({self.name})", self.extra)
        if chosen and not self.sets:
            raise SourceError(f"{path} ({self.name}) holds one set of weights; leave out #{chosen}")
        module, _, function = self.reader.partition(":")
        read = getattr(importlib.import_module(f"keyfilters.sources.{module}"), function)
        return read(path, model, chosen) if chosen else read(path, model)


def _zip_with(*endings: str) -> Callable[[Content], bool]:
    def looks(c: Content) -> bool:
        return all(any(name.endswith(x) for name in c.names) for x in endings)

    return looks


def _is_pickle(c: Content) -> bool:
    if c.names:
        exported = ("model_weights_config.json", "serialized_state_dict.pt")
        last = {name.rpartition("/")[2] for name in c.names}
        return bool(last & {"data.pkl", "constants.pkl"}) or any(
            name.endswith(exported) for name in c.names
        )
    if c.start[257:262] == b"ustar":
        return {"pickle", "storages", "tensors"} <= c.tar_names
    return c.start[:1] == b"\x80" and c.start[1:2] in b"\2\3\4\5" and c.size > 2


def _is_core_ml(c: Content) -> bool:
    found = c.fields or {}
    models = (200, 201, 202, 303, 403, 500, 502)
    return found.get(1) == 0 and found.get(2) == 2 and any(found.get(x) == 2 for x in models)


def _is_caffe(c: Content) -> bool:
    found = c.fields or {}
    layers = found.get(100) == 2 or (found.get(2) == 2 and c.path.suffix == ".caffemodel")
    return found.get(1) == 2 and layers and found.keys() <= {1, 2, 3, 4, 5, 6, 7, 8, 100}


def _all_npy(c: Content) -> bool:
    return all(x.endswith(".npy") for x in c.names)


def _is_msgpack(c: Content) -> bool:
    """Whether a file begins with a map whose first key is a text."""
    first = c.start[:1]
    if b"\x81" <= first <= b"\x8f":
        key = c.start[1:2]
    elif first in (b"\xde", b"\xdf"):
        key = c.start[3 if first == b"\xde" else 5 :][:1]
    else:
        return False
    return b"\xa1" <= key <= b"\xbf" or key in (b"\xd9", b"\xda")


def _is_tensorrt(c: Content) -> bool:
    return c.start[:4] in (b"ftrt", b"ptrt", b"trtf")


def _is_ncnn(c: Content) -> bool:
    return c.start[:7] == b"7767517" or (c.start[:4] == NCNN and ".param" in c.path.name)


def _is_darknet(c: Content) -> bool:
    if c.path.suffix != ".weights" or c.size < 20:
        return False
    major, minor, revision = struct.unpack_from("<3i", c.start)
    return 0 <= major < 2 and 0 <= minor < 100 and 0 <= revision < 100


def _is_mnn(c: Content) -> bool:
    from keyfilters.sources.mnn_files import is_mnn

    return c.path.suffix.lower() == ".mnn" or is_mnn(c.path)


FORMATS: tuple[Format, ...] = (
    Format(
        "safetensors",
        (".safetensors",),
        "checkpoints:read_safetensors",
        lambda c: c.start[8:9] == b"{" and 0 < int.from_bytes(c.start[:8], "little") < c.size,
        written=True,
        sets=True,
    ),
    Format(
        "PyTorch",
        (
            ".pth",
            ".pt",
            ".ckpt",
            ".bin",
            ".pth.tar",
            ".pt.tar",
            ".pt2",
            ".ptl",
            ".pkl",
            ".th",
            ".pdparams",
        ),
        "checkpoints:read_pickle",
        _is_pickle,
        written=True,
        sets=True,
    ),
    Format(
        "ONNX",
        (".onnx",),
        "onnx_files:read_onnx",
        lambda c: bool(c.fields) and {1: 0, 7: 2, 8: 2}.items() <= (c.fields or {}).items(),
        extra="onnx",
        package="onnx",
        written=True,
    ),
    Format(
        "TensorFlow Lite",
        (".tflite",),
        "tflite_files:read_tflite",
        lambda c: c.start[4:8] == b"TFL3",
        extra="tflite",
        package="tflite",
        written=True,
    ),
    Format(
        "Keras",
        (".h5", ".hdf5", ".keras", ".weights.h5"),
        "keras_files:read_keras",
        lambda c: c.start.startswith(b"\x89HDF\r\n\x1a\n") or _zip_with("model.weights.h5")(c),
        extra="keras",
        package="pyfive",
        written=True,
    ),
    Format(
        "TensorFlow SavedModel",
        ("saved_model.pb",),
        "saved_models:read_saved_model",
        lambda c: c.path.name == "saved_model.pb" and (c.fields or {}).get(2) == 2,
    ),
    Format(
        "TensorFlow frozen graph",
        (".pb",),
        "tensorflow_graphs:read_frozen_graph",
        lambda c: c.first_child == (1, 2) and set(c.fields or {0}) <= {1, 2, 3, 4, 5},
    ),
    Format(
        "TensorFlow checkpoint",
        (".ckpt.index", ".index"),
        "saved_models:read_checkpoint",
        lambda c: c.end.endswith(bytes.fromhex("57fb808b247547db")),
    ),
    Format(
        "TensorFlow.js",
        (".json",),
        "tfjs_files:read_tfjs",
        lambda c: (
            c.is_json
            and c.holds(b'"weights"', b'"paths"')
            and (c.holds(b'"weightsManifest"') or c.start.lstrip()[:1] == b"[")
        ),
    ),
    Format(
        "ncnn", (".param", ".param.bin"), "ncnn_files:read_ncnn", _is_ncnn, companions=(".bin",)
    ),
    Format("Core ML", (".mlmodel", ".mlpackage"), "core_ml_files:read_core_ml", _is_core_ml),
    Format(
        "PaddlePaddle",
        (".pdmodel",),
        "paddle_files:read_paddle",
        lambda c: c.first_child == (1, 0) and set(c.fields or {0}) <= {1, 4, 5},
        companions=(".pdiparams", ".pdiparams.info"),
    ),
    Format(
        "Caffe", (".caffemodel",), "caffe_files:read_caffe", _is_caffe, companions=(".prototxt",)
    ),
    Format(
        "Darknet", (".weights",), "darknet_files:read_darknet", _is_darknet, companions=(".cfg",)
    ),
    Format(
        "OpenVINO",
        (".xml",),
        "openvino_files:read_openvino",
        lambda c: b"<net " in c.start and c.start.lstrip()[:1] == b"<",
        written=True,
        companions=(".bin",),
    ),
    Format(
        "ONNX Runtime",
        (".ort",),
        "ort_files:read_ort",
        lambda c: c.start[4:8] == b"ORTM",
        extra="onnx",
        package="onnx",
    ),
    Format(
        "NumPy",
        (".npz", ".npy"),
        "array_files:read_numpy",
        lambda c: c.start.startswith(b"\x93NUMPY") or (bool(c.names) and _all_npy(c)),
    ),
    Format(
        "Flax", (".msgpack",), "array_files:read_flax", _is_msgpack, extra="flax", package="msgpack"
    ),
    Format(
        "Orbax",
        ("_METADATA",),
        "array_files:read_orbax",
        lambda c: c.path.name == "_METADATA" and c.is_json,
        extra="orbax",
        package="tensorstore",
    ),
    Format(
        "TensorRT", (".engine", ".plan", ".trt"), "refused:tensorrt", _is_tensorrt, refused=True
    ),
    Format("MNN", (".mnn",), "mnn_files:read_mnn", _is_mnn),
)


READERS: dict[str, Format] = {}
for _format in FORMATS:
    for _suffix in _format.suffixes:
        READERS.setdefault(_suffix, _format)

# Files that make the folder around them one model.
FOLDERS = {
    "saved_model.pb": "TensorFlow SavedModel",
    "Manifest.json": "Core ML",
    "_CHECKPOINT_METADATA": "Orbax",
    "_METADATA": "Orbax",
    "_sharding": "Orbax",
}


def folder_format(path: Path) -> Format | None:
    """Return the format of a folder that is one model; None of any other folder and of files."""
    if not path.is_dir():
        return None
    name = next((x for x in FOLDERS if (path / x).is_file()), "")
    if name == "Manifest.json" and not (path / "Data").is_dir():
        return None
    return next((x for x in FORMATS if x.name == FOLDERS.get(name)), None)


def companions(path: Path, kind: Format) -> list[Path]:
    """Return the files that belong to the model of a file, such as the weights of a graph."""
    stem = path.name
    for ending in kind.suffixes:
        if stem.lower().endswith(ending):
            stem = stem[: -len(ending)]
            break
    found = [path.with_name(stem + ending) for ending in kind.companions]
    if kind.name == "TensorFlow.js":
        try:
            content = load_json(path)
            groups = content["weightsManifest"] if isinstance(content, dict) else content
            found += [path.parent / str(name) for group in groups for name in group["paths"]]
        except (ValueError, LookupError, TypeError, OSError):
            pass
    return found


def suffix_format(path: Path) -> Format | None:
    """Return the format that a file's name tells, None if it tells none."""
    name = path.name.lower()
    ending = max((x for x in READERS if name.endswith(x)), key=len, default=None)
    return READERS[ending] if ending else None


def recognise(path: Path) -> Format | None:
    """Return the format that the bytes of a file tell, None if it is none that is read."""
    try:
        content = Content(path)
        return next((x for x in FORMATS if x.looks(content)), None) if content.size else None
    except OSError:
        return None


def format_table() -> list[dict[str, str]]:
    """Return one row a format: name, files, read, written, extra and library."""
    return [
        {
            "format": x.name,
            "files": " ".join(dict.fromkeys(x.suffixes)),
            "read": "refused, with advice" if x.refused else "yes",
            "written": "yes" if x.written else "",
            "extra": x.extra,
            "library": x.package or "built in",
            "ready": "yes" if x.ready else "no",
        }
        for x in FORMATS
    ]


def markdown_table() -> str:
    """Return the table of formats as it stands in ``docs/formats.md``."""
    columns = ("format", "files", "read", "written", "extra", "library")
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for row in format_table():
        files = " ".join(f"`{x}`" for x in row["files"].split())
        lines.append(f"| {' | '.join((row | {'files': files})[x] for x in columns)} |")
    return "\n".join(lines) + "\n"
