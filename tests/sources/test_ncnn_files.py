"""ncnn: where the weights of a layer lie behind those of all others, and how they are stored.

The sizes are those that ``load_model`` of every layer in ncnn's ``src/layer`` takes, the numbers of
the layers' types those of its ``src/CMakeLists.txt``.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.bank import Layer
from keyfilters.errors import SourceError

RNG = np.random.default_rng(5)
FILTERS = RNG.normal(size=(3, 3, 3)).astype(np.float32)
HALF, INT8, RAW = 0x01306B47, 0x000D4B38, 0x0002C056
DW = "0=3 1=3 6=27 7=3"
NUMBERS = {
    "BatchNorm": 2, "Bias": 3, "Convolution": 6, "Deconvolution": 8, "Embed": 12,
    "InnerProduct": 15, "MemoryData": 19, "PReLU": 23, "ReLU": 26, "Reshape": 27, "Scale": 29,
    "RNN": 38, "LSTM": 39, "ConvolutionDepthWise": 42, "Padding": 43, "Normalize": 46,
    "DeconvolutionDepthWise": 51, "InstanceNorm": 53, "Quantize": 57, "Dequantize": 58,
    "Requantize": 63, "Gemm": 74, "GroupNorm": 75, "LayerNorm": 76, "GRU": 78,
    "MultiHeadAttention": 79, "Convolution1D": 81, "ConvolutionDepthWise1D": 83,
    "Convolution3D": 84, "ConvolutionDepthWise3D": 85, "Deconvolution1D": 88,
    "DeconvolutionDepthWise1D": 89, "Deconvolution3D": 90, "DeconvolutionDepthWise3D": 91,
    "DeformableConv2D": 93, "RMSNorm": 104,
}  # fmt: skip


def raw(count: int) -> bytes:
    """Encode weights of type 1."""
    return RNG.normal(size=count).astype("<f4").tobytes()


def told(count: int) -> bytes:
    """Encode weights of type 0, which begin with how they are stored."""
    return bytes(4) + raw(count)


def marked(mark: int, values: bytes) -> bytes:
    return struct.pack("<I", mark) + values + bytes(-len(values) % 4)


PLAIN = marked(0, FILTERS.tobytes())
Layers = list[tuple[str, str]]


def text(layers: Layers) -> bytes:
    lines = [f"{kind} l{i} 1 1 b{i} b{i + 1} {params}" for i, (kind, params) in enumerate(layers)]
    return "\n".join(["7767517", f"{len(layers)} {len(layers) + 1}", *lines, ""]).encode()


def binary(layers: Layers) -> bytes:
    found = struct.pack("<3i", 7767517, len(layers), len(layers) + 1)
    for i, (kind, params) in enumerate(layers):
        found += struct.pack("<5i", NUMBERS[kind], 1, 1, i, i + 1)
        for key, _, value in (word.partition("=") for word in params.split()):
            if '"' in value or value[:1].isalpha():
                content = value.strip('"').encode()
                found += struct.pack("<2i", -23400 - int(key), len(content))
                found += content + bytes(-len(content) % 4)
            elif key.startswith("-"):
                numbers = [int(x) for x in value.split(",")]
                found += struct.pack(f"<{len(numbers) + 1}i", int(key), *numbers)
            else:
                floating = "." in value
                number = float(value) if floating else int(value)
                found += struct.pack("<if" if floating else "<2i", int(key), number)
        found += struct.pack("<i", -233)
    return found


def read(folder: Path, layers: Layers, weights: bytes, form: str = "text") -> kf.FilterBank:
    path = folder / ("net.param" if form == "text" else "net.param.bin")
    path.write_bytes(text(layers) if form == "text" else binary(layers))
    (folder / "net.bin").write_bytes(weights)
    return kf.read(path)


def one(bank: kf.FilterBank) -> Layer:
    [layer] = bank.layers
    return layer


PASSED = [
    ("ReLU", "0=0.1", b""),
    ("Reshape", '0=2 -23303=3,1,2,3 6="0w,0h,-1"', b""),
    ("Reshape", "6=w,h", b""),
    ("BatchNorm", "0=5 1=0.1", raw(20)),
    ("Bias", "0=5", raw(5)),
    ("PReLU", "0=5", raw(5)),
    ("Scale", "0=5", raw(5)),
    ("Scale", "0=5 1=1", raw(10)),
    ("Scale", "0=-233 1=1", b""),
    ("InnerProduct", "0=3 1=1 2=15", told(15) + raw(3)),
    ("InnerProduct", "0=3 2=15 8=2", told(15) + raw(4)),
    ("Embed", "0=3 1=7 3=21", told(21)),
    ("Embed", "0=3 1=7 2=1 3=21 18=1", told(21) + raw(4)),
    ("InstanceNorm", "0=5", raw(10)),
    ("InstanceNorm", "0=5 2=0", b""),
    ("GroupNorm", "0=2 1=6", raw(12)),
    ("GroupNorm", "0=2 1=6 3=0", b""),
    ("LayerNorm", "0=5", raw(10)),
    ("RMSNorm", "0=5", raw(5)),
    ("MemoryData", "0=2 1=3", raw(6)),
    ("MemoryData", "0=2 1=3 11=2 2=5 21=0", told(60)),
    ("MemoryData", "", b""),
    ("Normalize", "3=5", raw(5)),
    ("Padding", "6=5", raw(5)),
    ("Padding", "0=1 1=1 2=1 3=1", b""),
    ("Quantize", "0=5", raw(5)),
    ("Quantize", "", raw(1)),
    ("Dequantize", "", raw(1)),
    ("Dequantize", "0=3 1=5", raw(8)),
    ("Requantize", "", raw(2)),
    ("Requantize", "0=3 1=4 2=5", raw(12)),
    ("RNN", "0=3 1=6", told(6) + told(3) + told(9)),
    ("RNN", "0=3 1=12 2=2 8=1", told(12) + told(6) + told(18) + raw(6) + raw(6)),
    ("GRU", "0=3 1=18", told(18) + told(12) + told(27)),
    ("LSTM", "0=3 1=24", told(24) + told(12) + told(36)),
    ("LSTM", "0=3 1=40 2=2 3=5 8=1", told(40) + told(40) + told(120) + told(30) + raw(80)),
    ("MultiHeadAttention", "0=4 1=2 2=16", 4 * (told(16) + raw(4))),
    (
        "MultiHeadAttention",
        "0=4 1=2 2=24 3=5 4=7 18=1",
        told(24) + raw(4) + told(20) + raw(4) + told(28) + raw(4) + told(24) + raw(6) + raw(13),
    ),
    ("Gemm", "", b""),
    ("Gemm", "4=1 5=1 6=1 7=2 8=3 9=5 10=4", told(10) + told(15) + told(3)),
    ("Gemm", "5=1 6=1 8=3 9=5 10=-1 18=1", told(15) + raw(1)),
    ("Gemm", "4=1 6=1 7=2 9=5 10=0 18=2", told(10) + told(1) + raw(2)),
    ("Gemm", "6=1 7=2 8=3 10=1", told(2)),
    ("Gemm", "6=1 7=2 8=3 10=2", told(2)),
    ("Gemm", "6=1 7=2 8=3 10=3", told(6)),
]


@pytest.mark.parametrize("form", ["text", "binary"])
@pytest.mark.parametrize(
    ("kind", "params", "weights"), PASSED, ids=[f"{x} {y}" for x, y, _ in PASSED]
)
def test_filters_lie_behind_the_weights_of_any_other_layer(
    tmp_path: Path, form: str, kind: str, params: str, weights: bytes
) -> None:
    bank = read(tmp_path, [(kind, params), ("ConvolutionDepthWise", DW)], weights + PLAIN, form)
    np.testing.assert_array_equal(one(bank).weight, FILTERS)
    assert not bank.skipped


SKIPPED = [
    ("Convolution", "0=4 1=3 5=1 6=108", told(108) + raw(4), "dense"),
    ("Convolution", "0=4 1=1 6=12 8=102", told(12) + raw(4) + raw(2), "pointwise"),
    ("Convolution", "0=4 1=3 6=108 19=1", b"", "computed"),
    ("Convolution1D", "0=4 1=3 5=1 6=36", told(36) + raw(4), "dense"),
    ("Convolution3D", "0=4 1=3 6=324", told(324), "dense"),
    ("ConvolutionDepthWise", "0=4 1=3 6=72 7=2", told(72), "grouped"),
    ("ConvolutionDepthWise", "0=3 1=3 6=27 7=1", told(27), "one-channel"),
    ("ConvolutionDepthWise", "0=27 1=1 6=27 7=27", told(27), "single tap"),
    ("ConvolutionDepthWise", "0=3 1=3 6=27 7=3", marked(INT8, bytes(27)), "scale"),
    ("ConvolutionDepthWise3D", "0=4 1=3 6=108 7=4 24=1", told(108), "3-D"),
    ("Deconvolution", "0=4 1=3 6=108", told(108), "transposed"),
    ("Deconvolution", "0=4 1=3 5=1 6=108 28=1", b"", "computed"),
    ("Deconvolution1D", "0=4 1=3 6=36", told(36), "transposed"),
    ("Deconvolution3D", "0=4 1=3 6=324", told(324), "transposed"),
    ("DeconvolutionDepthWise", "0=3 1=3 5=1 6=27 7=3 19=1", told(27) + raw(3), "transposed"),
    ("DeconvolutionDepthWise1D", "0=3 1=3 6=9 7=3", told(9), "transposed"),
    ("DeconvolutionDepthWise3D", "0=3 1=3 6=81 7=3", told(81), "transposed"),
    ("DeformableConv2D", "0=4 1=3 5=1 6=108", told(108) + raw(4), "DeformableConv2D"),
]


@pytest.mark.parametrize("form", ["text", "binary"])
@pytest.mark.parametrize(
    ("kind", "params", "weights", "reason"), SKIPPED, ids=[f"{x[0]} {x[-1]}" for x in SKIPPED]
)
def test_other_convolutions_are_passed_and_named(
    tmp_path: Path, form: str, kind: str, params: str, weights: bytes, reason: str
) -> None:
    bank = read(tmp_path, [(kind, params), ("ConvolutionDepthWise", DW)], weights + PLAIN, form)
    np.testing.assert_array_equal(one(bank).weight, FILTERS)
    [(_, why)] = bank.skipped
    assert reason in why


TABLE = RNG.normal(size=256).astype("<f4")
INDEX = RNG.integers(0, 256, 27, dtype=np.uint8)
INTEGERS = RNG.integers(-127, 128, 27, dtype=np.int8)
SCALES = np.array([2, 0, 0.5], "<f4")  # of nothing but zeros, the second
EACH = INTEGERS.reshape(3, 3, 3) * np.array([0.5, 0, 2], np.float32)[:, None, None]
BYTES = marked(INT8, INTEGERS.tobytes())


@pytest.mark.parametrize(
    ("weights", "params", "expected"),
    [
        (marked(RAW, FILTERS.tobytes()), "", FILTERS),
        (marked(HALF, FILTERS.astype("<f2").tobytes()), "", FILTERS.astype(np.float16)),
        (marked(1, TABLE.tobytes() + INDEX.tobytes()), "", TABLE[INDEX].reshape(3, 3, 3)),
        (PLAIN + raw(3), "5=1", FILTERS),
        (PLAIN + raw(3) + raw(1), "8=1", FILTERS),
        (BYTES + SCALES.tobytes() + raw(1), "8=1", EACH),
        (BYTES + raw(3) + SCALES.tobytes() + raw(2), "5=1 8=101", EACH),
        (BYTES + SCALES[:1].tobytes() + raw(1), "8=2", INTEGERS.reshape(3, 3, 3) / 2),
        (BYTES + SCALES[2:].tobytes() + raw(2), "8=102", INTEGERS.reshape(3, 3, 3) * 2.0),
    ],
    ids=["raw", "half", "table", "bias", "floats", "each", "more", "one", "one more"],
)
def test_ways_to_store_a_weight(
    tmp_path: Path, weights: bytes, params: str, expected: np.ndarray
) -> None:
    layers = [("ConvolutionDepthWise", f"{DW} {params}"), ("Bias", "0=2")]
    layer = one(read(tmp_path, layers, weights + raw(2)))
    np.testing.assert_array_equal(layer.weight, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("kind", "params", "expected"),
    [
        ("ConvolutionDepthWise", "0=3 1=3 6=27 7=3", {"padding": (0, 0), "stride": (1, 1)}),
        ("ConvolutionDepthWise", "0=3 1=3 4=-233 6=27 7=3", {"padding": "same"}),
        ("ConvolutionDepthWise", "0=3 1=3 4=-234 6=27 7=3", {"padding": "same"}),
        (
            "ConvolutionDepthWise",
            "0=3 1=1 11=9 2=1 12=2 3=1 13=3 4=0 14=4 6=27 7=3",
            {"padding": (4, 0), "stride": (3, 1), "dilation": (2, 1)},
        ),
        ("ConvolutionDepthWise", "0=3 1=3 14=1 15=2 16=3 6=27 7=3", {"padding": (1, 0, 3, 2)}),
        ("ConvolutionDepthWise1D", "0=3 1=9 4=4 6=27 7=3", {"padding": (0, 4), "ndim": 1}),
        ("ConvolutionDepthWise1D", "0=3 1=9 4=4 15=3 6=27 7=3", {"padding": (0, 4, 0, 3)}),
        ("ConvolutionDepthWise1D", "0=3 1=9 3=2 4=-233 6=27 7=3", {"padding": "same"}),
        ("ConvolutionDepthWise", "0=9 1=3 11=1 6=27 7=3", {"multiplier": 3, "groups": 3}),
    ],
)
def test_geometry(tmp_path: Path, kind: str, params: str, expected: dict[str, object]) -> None:
    layer = one(read(tmp_path, [(kind, params)], PLAIN))
    assert {key: getattr(layer, key) for key in expected} == expected
    np.testing.assert_array_equal(layer.weight.ravel(), FILTERS.ravel())


@pytest.mark.parametrize(
    ("kind", "params", "weights"),
    [
        ("ConvolutionDepthWise", DW, PLAIN[:-4]),
        ("ConvolutionDepthWise", DW, PLAIN + raw(1)),
        ("ConvolutionDepthWise", "0=3 1=3 6=28 7=3", told(28)),
        ("ConvolutionDepthWise", "0=3 1=3 6=27 7=2", PLAIN),
        ("ConvolutionDepthWise", "0=3 6=27 7=3", PLAIN),
        ("ConvolutionDepthWise", "0=3 1=3 6=27 7=-3", PLAIN),
        ("BatchNorm", "0=-1", b""),
        ("InnerProduct", "0=1 2=-1", bytes(4)),
        ("MemoryData", "0=-2 1=-3 21=0", told(6)),
        ("MultiHeadAttention", "0=0 2=4", b""),
        ("MultiHeadAttention", "0=4 2=16 18=408", b""),
        ("Gemm", "5=1 8=3 9=5 18=408", told(15)),
    ],
    ids=[
        *("too few", "too many", "no whole filters", "groups", "no taps", "negative groups"),
        *("negative", "marked negative", "negative twice", "no extent", "few bits", "few bits too"),
    ],
)
def test_layers_that_do_not_fit_their_weights(
    tmp_path: Path, kind: str, params: str, weights: bytes
) -> None:
    with pytest.raises(SourceError):
        read(tmp_path, [(kind, params)], weights)


HEAD = struct.pack("<3i", 7767517, 1, 2)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("net.param", b"7767517", "begin"),
        ("net.param", b"77675170\n0 0\n", "begin"),
        ("net.param", b"7767517\n2 2\nInput x 0 1 x\n", "layers"),
        ("net.param", b"7767517\n1 1\nInput x 0 -1 x\n", "negative"),
        ("net.param.bin", HEAD[:8], "cut short"),
        ("net.param.bin", struct.pack("<3i", 7767517, -1, 2), "begin"),
        ("net.param.bin", HEAD + struct.pack("<3i", 6, 1, -1), "negative"),
        ("net.param.bin", HEAD + struct.pack("<7i", 6, 1, 1, 0, 1, -23303, -1), "cut short"),
        ("net.param.bin", HEAD + struct.pack("<7i", 6, 1, 1, 0, 1, -23406, 100), "cut short"),
    ],
    ids=["head", "mark", "count", "inputs", "short", "layers", "outputs", "numbers", "text"],
)
def test_damaged_lists_of_layers(tmp_path: Path, name: str, content: bytes, word: str) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "net.bin").write_bytes(b"")
    with pytest.raises(SourceError, match=word):
        kf.read(tmp_path / name)
