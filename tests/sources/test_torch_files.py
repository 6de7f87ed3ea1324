"""Files of PyTorch of all ages, and those that are damaged or hostile."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.sources.torch_files import load_torch
from keyfilters.sources.torch_tensors import REBUILD
from tests.sources.pickle_writer import (
    Made,
    Name,
    OldText,
    Persistent,
    checkpoint,
    old_stream,
    pickled,
    storage,
    tensor,
    zipped,
)
from tests.sources.tiny_models import FILTERS, OIHW, POINTWISE, STATE, Net

DW = torch.from_numpy(OIHW.copy())
KERNEL = FILTERS.tobytes()
SHAPE = (4, 1, 3, 3)


def check(path: Path, expected: Any = OIHW) -> Layer:
    """Read a file of one depthwise layer with these very numbers."""
    [layer] = kf.read(path).layers
    expected = np.ascontiguousarray(np.asarray(expected, np.float32)[:, 0])
    np.testing.assert_array_equal(layer.weight.view(np.uint32), expected.view(np.uint32))
    return layer


# ------------------------------------------------------------------ how tensors are kept


class Labelled(Tensor):
    pass


def labelled() -> Tensor:
    value = DW.clone()
    value.label = "kept as state"  # type: ignore[attr-defined]
    return value


TENSORS: dict[str, Any] = {
    "parameter": nn.Parameter(DW.clone()),
    "subclass": DW.clone().as_subclass(Labelled),
    "attribute": labelled(),
    "transposed": DW.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "part of a storage": torch.cat([DW + 1, DW])[4:],
    "float8": DW.to(torch.float8_e4m3fn),
    "bfloat16": DW.bfloat16(),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("new", [True, False])
def test_every_kind_of_tensor(tmp_path: Path, name: str, new: bool) -> None:
    value = TENSORS[name]
    torch.save({"dw.weight": value}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    check(tmp_path / "a.pth", value.detach().float().numpy())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_that_pickle_wrote(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(STATE, protocol))
    check(tmp_path / "a.pkl")


def test_an_archive_that_was_packed_again(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        members = {x: archive.read(x) for x in archive.namelist()}
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(tmp_path / "b.pth", "w", method) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        if method == zipfile.ZIP_DEFLATED:
            check(tmp_path / "b.pth")
        else:
            with pytest.raises(kf.KeyFiltersError, match="compressed"):
                kf.read(tmp_path / "b.pth")


def test_views_of_one_storage_in_an_old_file(tmp_path: Path) -> None:
    """PyTorch before 0.4 kept storages that are parts of another."""

    def view(name: str, offset: int, count: int) -> Persistent:
        return storage("root", 48, "FloatStorage", (name, offset, count))

    value = {
        "pw.weight": tensor(view("v0", 0, 12), (4, 3, 1, 1), function="_rebuild_tensor"),
        "dw.weight": tensor(view("v1", 12, 36), SHAPE),
    }
    path = old_stream(tmp_path / "a.pth", value, root=(48, POINTWISE.tobytes() + KERNEL))
    assert torch.equal(torch.load(path, weights_only=True)["dw.weight"], DW)
    check(path)


def test_a_module_in_an_old_file(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    layer = check(tmp_path / "a.pth")
    assert (layer.stride, layer.groups) == ((2, 2), 4)


def test_pairs_and_functions_of_older_versions(tmp_path: Path) -> None:
    """Python 2 wrote an ordered mapping as pairs, PyTorch before 1.9 subclasses of tensors so."""
    old = Name("torch._tensor", "_rebuild_from_type")
    made = tensor(storage("a", 36), SHAPE)
    inner = Made(old, (made.function, Name("torch", "Tensor"), made.args, {}))
    pairs = Made(Name("collections", "OrderedDict"), ([["dw.weight", inner], ["epoch", 3]],))
    check(checkpoint(tmp_path / "a.pth", pairs, a=KERNEL))


WHOLE = np.rint(OIHW * 20).astype(np.int8)
AFFINE, BY_CHANNEL = (Name("torch", f"per_{x}_affine") for x in ("tensor", "channel"))


def quantised(held: Any, *quantiser: Any) -> Made:
    return Made(Name("torch._utils", "_rebuild_qtensor"), (held, 0, SHAPE, (9, 9, 3, 1), quantiser))


def test_quantised_weights(tmp_path: Path) -> None:
    """PyTorch keeps one scale as float32, and those of channels as float64."""
    held = storage("a", 36, "QInt8Storage")
    path = checkpoint(
        tmp_path / "a.pth", {"dw.weight": quantised(held, AFFINE, 0.03, 7)}, a=WHOLE.tobytes()
    )
    check(path, (WHOLE.astype(np.float32) - 7) * np.float32(0.03))
    scales, zeros = np.array([0.01, 0.02, 0.03, 0.1]), np.array([0, -3, 5, 1])
    made = quantised(
        held, BY_CHANNEL, tensor(storage("s", 4, "DoubleStorage"), (4,)),
        tensor(storage("z", 4, "LongStorage"), (4,)), 0,
    )  # fmt: skip
    path = checkpoint(
        path, {"dw.weight": made}, a=WHOLE.tobytes(), s=scales.tobytes(), z=zeros.tobytes()
    )
    each, zero = (x[:, None, None, None] for x in (scales, zeros))
    check(path, (WHOLE - zero) * each)


# ------------------------------------------------------------------ the tar archive before 0.2


def tarred(path: Path, value: Any, views: Any = (), **changes: Any) -> Path:
    """Write storage 1, views of it, tensors 10 (pointwise) and 11 of the last two storages."""
    float_storage = Name("torch", "FloatStorage")
    content = pickled(1) + pickled((1, "cpu", float_storage))
    content += struct.pack("<q", 48) + POINTWISE.tobytes() + KERNEL + pickled(list(views))
    held = [views[0][0], views[1][0]] if views else [1, 1]
    tensors = pickled(2)
    for key, shape, place in ((10, (4, 3, 1, 1), 0), (11, SHAPE, 1)):
        strides = [int(np.prod(shape[i + 1 :])) for i in range(4)]
        tensors += pickled((key, held[place], Name("torch", "FloatTensor")))
        tensors += struct.pack("<i4x9q", 4, *shape, *strides, 0 if views else 12 * place)
    parts = {"storages": content, "tensors": tensors, "pickle": pickled(value), **changes}
    with tarfile.open(path, "w") as archive:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.REGTYPE if data is not None else tarfile.DIRTYPE
            entry.size = len(data or b"")
            archive.addfile(entry, io.BytesIO(data or b""))
    return path


TWO = {"pw.weight": Persistent("10"), "dw.weight": Persistent("11")}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tarfile, in torch.load
@pytest.mark.parametrize("views", [(), ((2, 1, 0, 12), (3, 1, 12, 36))])
def test_views_in_the_oldest_files(tmp_path: Path, views: Any) -> None:
    path = tarred(tmp_path / "a.pth", TWO, views)
    assert torch.equal(torch.load(path, weights_only=False)["dw.weight"], DW)
    check(path)


def test_a_module_in_the_oldest_files(tmp_path: Path) -> None:
    """The class of a module is a persistent id, with the source beside it."""
    kind = Name("torch.nn.modules.conv", "Conv2d")
    state = {
        "_modules": {}, "_buffers": {}, "_parameters": {"weight": Persistent("11")},
        "kernel_size": (3, 3), "stride": (2, 1), "padding": (0, 1), "dilation": (1, 1),
        "groups": 4, "in_channels": 4, "transposed": False,
    }  # fmt: skip
    module = Made(Persistent((kind, "conv.py", "class Conv2d: ...")), (), state)
    path = tarred(tmp_path / "a.pth", module)
    layer = check(path)
    assert (layer.stride, layer.padding, layer.groups) == ((2, 1), (0, 1), 4)
    assert load_torch(path).kind == "torch.nn.modules.conv.Conv2d"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"pickle": None}, "no file"),
        ({"storages": pickled(-1)}, "number of entries"),
        ({"storages": pickled("x")}, "number of entries"),
        ({"tensors": pickled(2**40)}, "number of entries"),
        ({"storages": pickled(0) + pickled([])}, "no weights"),
        ({"storages": pickled(0) + pickled([(2, 1, 0, 12)])}, "not a readable"),
    ],
)
def test_damaged_oldest_files(tmp_path: Path, changes: Any, word: str) -> None:
    with pytest.raises(kf.KeyFiltersError, match=word):
        kf.read(tarred(tmp_path / "a.pth", TWO, **changes))


# ------------------------------------------------------------------ damage


HELD = storage("a", 36)
DAMAGED: dict[str, tuple[Any, str]] = {
    "strides of fewer axes": (tensor(HELD, SHAPE, (9, 3, 1)), "shape"),
    "a negative size": (tensor(HELD, (-4, 1, 3, 3), (9, 9, 3, 1)), "shape"),
    "a negative offset": (tensor(HELD, SHAPE, offset=-1), "shape"),
    "repeated far too often": (tensor(HELD, (2**21, 1, 3, 3), (0, 0, 3, 1)), "shape"),
    "an offset past the end": (tensor(HELD, SHAPE, offset=1), "leads out"),
    "strides past the end": (tensor(HELD, SHAPE, (9, 9, 3, 2)), "leads out"),
    "sizes that are a text": (tensor(HELD, "4133", (9, 9, 3, 1)), "sizes"),
    "a storage that is not there": (tensor(storage("b", 36), SHAPE), "not in the file"),
    "a storage that is a text": (tensor("a", SHAPE), "no weights"),
    "a persistent id that is a text": (tensor(Persistent("a"), SHAPE), "no weights"),
    "no scales": (
        quantised(storage("a", 36, "QInt8Storage"), BY_CHANNEL, None, None, 0), "scales",
    ),
    "quantised, of a text": (quantised("a", AFFINE, 1.0, 0), "no weights"),
    "a subclass by an unknown function": (
        Made(Name("torch._tensor", "_rebuild_from_type_v2"), (Name("a", "b"), None, (), None)),
        "no weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_tensors(tmp_path: Path, name: str) -> None:
    made, word = DAMAGED[name]
    path = checkpoint(tmp_path / "a.pth", {"dw.weight": made}, a=KERNEL)
    with pytest.raises(kf.KeyFiltersError, match=word):
        kf.read(path)


def test_the_undamaged_tensor_beside_which_these_were_written(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pth", {"dw.weight": tensor(HELD, SHAPE)}, a=KERNEL)
    assert torch.equal(torch.load(path, weights_only=True)["dw.weight"], DW)
    check(path)


def test_old_files_whose_storages_cannot_be_told_apart(tmp_path: Path) -> None:
    value = {"dw.weight": tensor(storage("a", 36, "FloatStorage", None), SHAPE)}
    check(old_stream(tmp_path / "a.pth", value, a=(36, KERNEL)))
    for data, word in (
        ({"a": (40, KERNEL)}, "cut short"),
        ({"a": (-1, KERNEL)}, "cut short"),
        ({"b": (1, b"x"), "a": (36, KERNEL)}, "storage 'b'"),
    ):
        with pytest.raises(kf.KeyFiltersError, match=word):
            kf.read(old_stream(tmp_path / "a.pth", value, **data))


def test_an_archive_whose_compressed_numbers_are_damaged(tmp_path: Path) -> None:
    value = {"dw.weight": tensor(HELD, SHAPE)}
    path = checkpoint(tmp_path / "a.pth", value, zipfile.ZIP_DEFLATED, a=KERNEL)
    check(path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 16] ^= 1  # the checksum of the last member
    path.write_bytes(content)
    with pytest.raises(kf.KeyFiltersError, match="checksum"):
        kf.read(path)


def test_an_archive_whose_member_does_not_begin_where_it_should(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pth", {"dw.weight": tensor(HELD, SHAPE)}, a=KERNEL)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\3\4")] ^= 1
    path.write_bytes(content)
    with pytest.raises(kf.KeyFiltersError, match="out of the archive"):
        kf.read(path)


@pytest.mark.parametrize("new", [True, False])
def test_a_tensor_without_numbers(tmp_path: Path, new: bool) -> None:
    value = {"none.weight": torch.empty(0, 1, 3, 3), "dw.weight": DW}
    torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    check(tmp_path / "a.pth")


def deep(level: int) -> Any:
    """Return a tensor whose storage is a pickle, in which lies a pickle, and so on."""
    name = Name("torch.storage", "_load_from_bytes")
    made: Any = [1]
    for _ in range(level):
        made = Made(name, (pickled(made),))
    return made


def packed(level: int) -> bytes:
    """Return an exported program whose weights are one, whose weights are one, and so on."""
    content = b""
    for _ in range(level):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("serialized_state_dict.pt", content)
        content = file.getvalue()
    return content


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (pickled(deep(9)), "too deep"),
        (packed(9), "too deep"),
        (pickled({"a": Made(Name("torch.storage", "_load_from_bytes"), ("text",))}), "no bytes"),
    ],
    ids=["pickles", "archives", "a text"],
)
def test_files_in_files_without_end(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(kf.KeyFiltersError, match=word):
        kf.read(tmp_path / "a.pth")


def test_archives_that_hold_something_else(tmp_path: Path) -> None:
    value = {"dw.weight": tensor(HELD, SHAPE)}
    members: dict[str, Any] = {"data.pkl": value, "data/a": KERNEL}
    check(zipped(tmp_path / "a.pth", members | {"byteorder": b"little"}))
    for held, word in (
        (members | {"byteorder": b"big"}, "big end"),
        ({"other.pkl": value, "data/a": KERNEL}, "without weights"),
        ({"model.json": b"{}"}, "without weights"),
    ):
        with pytest.raises(kf.KeyFiltersError, match=word):
            kf.read(zipped(tmp_path / "a.pth", held))


def test_an_archive_that_unpacks_to_far_more_than_it_is(tmp_path: Path) -> None:
    value = {"dw.weight": tensor(storage("a", 18 * 2**20), (2**20, 1, 3, 6))}
    path = checkpoint(tmp_path / "a.pth", value, zipfile.ZIP_DEFLATED, a=bytes(72 * 2**20))
    with pytest.raises(kf.KeyFiltersError, match="unpacks"):
        kf.read(path)


# ------------------------------------------------------------------ arrays of NumPy in pickles

ARRAYS: dict[str, Any] = {
    "rows first": OIHW,
    "columns first": np.asfortranarray(OIHW),
    "kernels of TensorFlow": FILTERS.transpose(1, 2, 0).copy()[:, :, None].transpose(3, 2, 0, 1),
    "other byte order": OIHW.astype(">f4"),
    "a part": np.concatenate([OIHW, OIHW], 1)[:, 1:],
    "float16": OIHW.astype(np.float16),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_that_pickle_wrote(tmp_path: Path, name: str, protocol: int) -> None:
    value = {"dw.weight": ARRAYS[name], "names": np.array(["a", None], object),
             "phase": np.ones((2, 1, 3, 3), complex).transpose(2, 1, 0, 3)}  # fmt: skip
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    check(tmp_path / "a.pkl", ARRAYS[name])


def array_of_python_2(content: bytes, kind: bytes = b"f4") -> Made:
    numpy = "numpy.core.multiarray"
    described = (3, OldText(b"<"), None, None, None, -1, -1, 0)
    dtype = Made(Name("numpy", "dtype"), (OldText(kind), 0, 1), described)
    started = (Name("numpy", "ndarray"), (0,), OldText(b"b"))
    state = (1, SHAPE, dtype, False, OldText(content))
    return Made(Name(numpy, "_reconstruct"), started, state)


def test_arrays_that_python_2_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled({"dw.weight": array_of_python_2(KERNEL)}))
    check(path)
    path.write_bytes(pickled({"dw.weight": array_of_python_2(KERNEL[:-4])}))
    with pytest.raises(kf.KeyFiltersError, match="bytes"):
        kf.read(path)


# ------------------------------------------------------------------ modules


@pytest.mark.parametrize(
    ("conv", "padding"),
    [
        (nn.Conv2d(4, 4, 3, groups=4, padding="same", dilation=2), "same"),
        (nn.Conv2d(4, 4, 3, groups=4, padding="valid"), (0, 0)),
        (nn.Conv2d(4, 4, 3, groups=4, padding=(2, 1)), (2, 1)),
    ],
)
def test_padding_that_a_pickled_module_tells(tmp_path: Path, conv: nn.Conv2d, padding: Any) -> None:
    torch.save(conv, tmp_path / "a.pth")
    layer = check(tmp_path / "a.pth", conv.weight.detach().numpy())
    assert (layer.padding, layer.dilation) == (padding, conv.dilation)
    conv.padding = None  # type: ignore[assignment]
    torch.save(conv, tmp_path / "a.pth")
    assert check(tmp_path / "a.pth", conv.weight.detach().numpy()).padding is None


def test_a_transposed_convolution_is_told_by_a_pickled_module(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.ConvTranspose2d(6, 12, 3, groups=6), Net().dw), tmp_path / "a.pth")
    check(tmp_path / "a.pth")
    [(name, why)] = kf.read(tmp_path / "a.pth").skipped
    assert name == "a/0" and "transposed" in why


WEIGHT = quantised(storage("a", 36, "QInt8Storage"), AFFINE, 0.25, 3)


def scripted(kind: str, state: Any) -> Made:
    module, _, name = f"__torch__.{kind}".rpartition(".")
    return Made(Name(module, name), (), state)


def tensors_in_script(*values: Any) -> Made:
    return Made(Name("torch.jit._pickle", "build_tensorlist"), (list(values),))


PARAMETERS = tensor(storage("b", 4), (4,))
HOLDERS: dict[str, tuple[Any, str, Any]] = {
    "a quantised layer": (
        scripted(
            "torch.ao.nn.quantized.modules.conv.Conv2d",
            (4, 4, (3, 3), (2, 1), (1, 0), (1, 1), False, (0, 0), 4, "zeros", WEIGHT, None, 0.5, 0,
             False),
        ), "dw", (2, 1),
    ),
    "packed parameters": (
        scripted(
            "Conv",
            {"training": False, "_packed_params": scripted(
                "torch.classes.quantized.Conv2dPackedParamsBase",
                ("2", tensors_in_script(PARAMETERS, WEIGHT), tensors_in_script()),
            )},
        ), "dw", None,
    ),
    "what a mobile backend packed": (
        scripted(
            "torch.classes.xnnpack.Conv2dOpContext",
            (WEIGHT, None, [2, 1], [1, 0], [1, 1], 4, None, None),
        ), "dw", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOLDERS)
def test_weights_that_backends_pack(tmp_path: Path, name: str) -> None:
    held, layer, stride = HOLDERS[name]
    empty = scripted("torch.classes.quantized.LinearPackedParamsBase", (PARAMETERS, None))
    other = scripted("Other", ("not a convolution",) * 9)
    value = scripted("Net", {"training": False, "dw": held, "fc": empty, "other": other})
    path = zipped(
        tmp_path / "a.pt",
        {"data.pkl": value, "data/a": WHOLE.tobytes(), "data/b": bytes(16), "constants.pkl": ()},
    )
    found = check(path, (WHOLE.astype(np.float32) - 3) * np.float32(0.25))
    assert (found.name, found.stride) == (layer, stride)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("make", [Tensor.to_sparse, Tensor.to_sparse_csr])
def test_sparse_weights_are_told_as_they_are_in_memory(
    tmp_path: Path, make: Callable[[Tensor], Tensor]
) -> None:
    held = make(DW.squeeze(1) if make is Tensor.to_sparse_csr else DW)
    state = {"sparse.weight": held, "dw.weight": DW}
    torch.save(state, tmp_path / "a.pth")
    bank = kf.read(tmp_path / "a.pth")
    assert bank.skipped == [
        ("a/sparse.weight", "weights stored as a sparse tensor; pass tensor.to_dense()")
    ]
    assert [layer.name for layer in bank.layers] == ["dw"]
    assert [why for _, why in kf.read(state).skipped] == [why for _, why in bank.skipped]


def test_a_zip_with_pickles_of_something_else_is_an_archive(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "net.safetensors")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("classes.pkl", pickle.dumps(["cat", "dog"]))
        archive.write(tmp_path / "net.safetensors", "net.safetensors")
    np.testing.assert_array_equal(kf.read(tmp_path / "a.zip").layers[0].weight, FILTERS)


@pytest.mark.parametrize("parts", [(), (1, 2, "x"), (1, 2, (-1, 3)), (1, 2, (2**62, 2**62))])
def test_sparse_tensors_without_a_shape_are_refused(parts: Any) -> None:
    with pytest.raises(ValueError, match=r"sizes|sparse"):
        REBUILD["torch._utils._rebuild_sparse_tensor"](("layout", parts))
