"""Reading TensorFlow Lite files: files built here, and the real models of mediapipe."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyfilters.bank import FilterBank
from keyfilters.errors import MissingExtraError, SourceError
from keyfilters.sources.tflite_files import read_tflite

tflite = pytest.importorskip("tflite")
from tests.sources.tflite_builder import Model  # noqa: E402

CONV_2D, DEPTHWISE, DEQUANTIZE, DENSIFY, TRANSPOSE_CONV = 3, 4, 6, 124, 67
CONV_3D, CONV_3D_TRANSPOSE, STABLEHLO_CONVOLUTION = 132, 141, 171
INT4, BFLOAT16, FLOAT64 = 17, 18, 10
RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(6, 3, 5)).astype(np.float32)  # (C, k_y, k_x)


def stored(filters: Any) -> Any:
    """Lay filters of shape (C, k_y, k_x) out as DEPTHWISE_CONV_2D wants them."""
    return np.ascontiguousarray(np.moveaxis(filters, 0, -1)[None])


def depthwise(model: Model, weight: int, channels: int = 6, **options: Any) -> Model:
    """Add a depthwise convolution with the given weights."""
    image = model.tensor([1, 20, 20, channels], name="image")
    model.operator(DEPTHWISE, [image, weight], [model.tensor([], name="made")], **options)
    return model


def read(model: Model | bytes, folder: Path) -> FilterBank:
    path = folder / "net.tflite"
    path.write_bytes(model if isinstance(model, bytes) else model.write())
    return read_tflite(path, "net")


def refusal(model: Model | bytes, folder: Path) -> str:
    """Return the message with which a file is refused, after checking its form."""
    with pytest.raises(SourceError) as caught:
        read(model, folder)
    message = str(caught.value)
    assert str(folder / "net.tflite") in message
    assert "\n" not in message
    return message


# ------------------------------------------------------------------ real files


def mediapipe(name: str) -> Path:
    """Find a model of mediapipe 0.10.21, or skip the test."""
    try:
        installed = importlib.metadata.distribution("mediapipe")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("mediapipe is not installed")
    if installed.version != "0.10.21":
        pytest.skip(f"the counts are those of mediapipe 0.10.21, not {installed.version}")
    found = [p for p in installed.files or () if p.name == f"{name}.tflite"]
    return Path(str(found[0].locate()))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("hand_landmark_full", {(3, 3): 2584, (5, 5): 6336}),  # float16 behind DEQUANTIZE
        ("face_detection_full_range_sparse", {(3, 3): 3708}),  # its dense layers are sparse
        ("pose_detection", {(3, 3): 4032, (5, 5): 6336}),
        ("palm_detection_full", {(5, 5): 4192}),
        ("iris_landmark", {(3, 3): 1536}),  # float32
        ("hand_recrop", {(3, 3): 112}),  # and 1×1 depthwise
        ("selfie_segmentation", {(3, 3): 232, (5, 5): 544}),  # with a custom convolution
    ],
)
def test_counts_of_real_files(name: str, sizes: dict[tuple[int, int], int]) -> None:
    bank = read_tflite(mediapipe(name), name)
    assert bank.sizes == sizes
    assert "non-finite" not in set(bank.unusable().flaw)
    assert all("onvolution" in reason for _, reason in bank.skipped)


def test_what_real_files_hold_besides() -> None:
    bank = read_tflite(mediapipe("selfie_segmentation"), "selfie")
    assert bank.skipped[-1][1] == "operator Convolution2DTransposeBias, which is not read"
    first = bank.layers[0]
    assert (first.name, first.stride, first.dilation) == ("depthwise_conv2d/Kernel", (2, 2), (1, 1))


def test_a_real_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = mediapipe("hand_recrop").read_bytes()
    cuts = [*range(0, len(content), 997), *range(len(content) - 40, len(content))]
    for length in cuts:
        refusal(content[:length], tmp_path)


# ------------------------------------------------------------------ geometry


def test_bits_geometry_and_names(tmp_path: Path) -> None:
    model = Model()
    weight = model.tensor([1, 3, 5, 6], stored(REAL), name="block/weights")
    depthwise(model, weight, channels=3, stride=(2, 1), dilation=(1, 2), multiplier=2)
    row = RNG.normal(size=(4, 1, 7)).astype(np.float32)
    depthwise(model, model.tensor([1, 1, 7, 4], stored(row)), channels=4)
    bank = read(model, tmp_path)
    first, second = bank.layers
    assert np.array_equal(first.weight, REAL)
    assert np.array_equal(second.weight, row)
    assert (first.name, second.name) == ("block/weights", "made")
    assert (first.stride, first.dilation, first.multiplier) == ((2, 1), (1, 2), 2)
    assert (second.stride, second.dilation, second.multiplier) == ((1, 1), (1, 1), 1)
    assert not bank.skipped


def test_a_dense_convolution_of_single_channels_is_depthwise(tmp_path: Path) -> None:
    model = Model()
    image, weight = model.tensor([1, 9, 9, 6]), model.tensor([6, 3, 5, 1], REAL, name="w")
    model.operator(CONV_2D, [image, weight], [model.tensor([])], stride=(2, 2))
    (layer,) = read(model, tmp_path).layers
    assert np.array_equal(layer.weight, REAL)
    assert layer.stride == (2, 2)


@pytest.mark.parametrize(
    ("code", "channels", "shape", "reason"),
    [
        (CONV_2D, 4, (8, 3, 3, 4), "dense 3×3 convolution of 4 channels"),
        (CONV_2D, 4, (8, 1, 1, 4), "pointwise (1×1) convolution"),
        (CONV_2D, 4, (8, 3, 3, 2), "grouped 3×3 convolution (2 groups of 2)"),
        (CONV_2D, 1, (8, 3, 3, 1), "3×3 convolution of a one-channel input"),
        (DEPTHWISE, 1, (1, 3, 3, 8), "3×3 convolution of a one-channel input"),
        (DEPTHWISE, 8, (1, 1, 1, 8), "depthwise convolution of a single tap"),
        (CONV_3D, 4, (3, 3, 3, 4, 8), "dense 3×3×3 convolution of 4 channels"),
        (TRANSPOSE_CONV, 4, (8, 2, 2, 4), "dense 2×2 transposed convolution of 4 channels"),
        (CONV_3D_TRANSPOSE, 4, (2, 2, 2, 8, 4), "dense 2×2×2 transposed convolution of 4"),
    ],
)
def test_other_convolutions_are_named(
    tmp_path: Path, code: int, channels: int, shape: tuple[int, ...], reason: str
) -> None:
    model = Model()
    image = model.tensor([1, *[9] * (len(shape) - 3), channels])
    weight = model.tensor(shape, np.zeros(shape, np.float32), name="other")
    size = model.tensor([4])
    inputs = [size, weight, image] if "TRANSPOSE" in _name(code) else [image, weight]
    model.operator(code, inputs, [model.tensor([])])
    bank = read(model, tmp_path)
    assert not bank.layers
    assert bank.skipped[0][0] == "net/other"
    assert bank.skipped[0][1].startswith(reason)


def _name(code: int) -> str:
    return str(tflite.opcode2name(code))


def test_operators_that_are_not_read_are_named(tmp_path: Path) -> None:
    model = Model()
    for code in ("Convolution2DTransposeBias", STABLEHLO_CONVOLUTION):
        model.operator(code, [], [model.tensor([], name="made")])
    assert read(model, tmp_path).skipped == [
        ("net/made", "operator Convolution2DTransposeBias, which is not read"),
        ("net/made", "operator STABLEHLO_CONVOLUTION, which is not read"),
    ]


def test_shared_weights_count_once_and_all_subgraphs_are_read(tmp_path: Path) -> None:
    model = Model()
    depthwise(model, model.tensor([1, 3, 5, 6], stored(REAL), name="first"))
    model.graphs.append(([], []))
    depthwise(model, model.tensor([1, 3, 5, 6], kind=0, buffer=1, name="second"))
    depthwise(model, model.tensor([1, 3, 5, 6], stored(REAL), name="third"))
    bank = read(model, tmp_path)
    assert [layer.name for layer in bank.layers] == ["first", "third"]
    assert bank.skipped == [("net/second", "shares its weights with first, counted once")]


# ------------------------------------------------------------------ where weights come from


SCALES = RNG.uniform(0.01, 0.1, 6).astype(np.float32)
ZEROS = RNG.integers(-5, 5, 6)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("behind", [False, True])
def test_integers_with_scales(tmp_path: Path, kind: Any, per_channel: bool, behind: bool) -> None:
    limits = np.iinfo(kind)
    values = RNG.integers(limits.min, limits.max, (6, 3, 5), endpoint=True).astype(kind)
    count = 6 if per_channel else 1
    model = Model()
    weight = model.tensor(
        [1, 3, 5, 6], stored(values), name="w", scale=SCALES[:count], zero=ZEROS[:count], axis=3
    )
    if behind:
        model.operator(DEQUANTIZE, [weight], [real := model.tensor([1, 3, 5, 6])])
        weight = real
    (layer,) = read(depthwise(model, weight), tmp_path).layers
    zero, scale = (np.resize(x[:count], 6).reshape(6, 1, 1) for x in (ZEROS, SCALES))
    assert np.array_equal(layer.weight, (values.astype(np.float32) - zero.astype("f4")) * scale)
    assert layer.name == "w"


def test_float16_behind_dequantize(tmp_path: Path) -> None:
    model = Model()
    half = REAL.astype(np.float16)
    weight = model.tensor([1, 3, 5, 6], stored(half), name="w")
    model.operator(DEQUANTIZE, [weight], [real := model.tensor([1, 3, 5, 6], name="w_dequantize")])
    (layer,) = read(depthwise(model, real), tmp_path).layers
    assert np.array_equal(layer.weight, half.astype(np.float32))
    assert layer.name == "w"


def test_int4(tmp_path: Path) -> None:
    values = RNG.integers(-8, 8, (5, 3, 3))  # an odd number: the last half byte is unused
    flat = np.append(stored(values).ravel(), 0).astype(np.uint8) & 15
    data = flat[::2] | (flat[1::2] << 4)
    model = Model()
    weight = model.tensor([1, 3, 3, 5], data, kind=INT4, scale=[0.5])
    (layer,) = read(depthwise(model, weight, channels=5), tmp_path).layers
    assert np.array_equal(layer.weight, values * np.float32(0.5))


def test_bfloat16_and_float64(tmp_path: Path) -> None:
    model = Model()
    bits = (stored(REAL).view(np.uint32) >> 16).astype(np.uint16)
    depthwise(model, model.tensor([1, 3, 5, 6], bits, kind=BFLOAT16))
    double = RNG.normal(size=(6, 3, 5))
    depthwise(model, model.tensor([1, 3, 5, 6], stored(double), kind=FLOAT64))
    first, second = read(model, tmp_path).layers
    assert np.array_equal(first.weight, (REAL.view(np.uint32) & 0xFFFF0000).view(np.float32))
    assert np.array_equal(second.weight, double.astype(np.float32))


def test_data_behind_the_flatbuffer(tmp_path: Path) -> None:
    model = Model(outside=True)
    depthwise(model, model.tensor([1, 3, 5, 6], stored(REAL)))
    if not hasattr(tflite.Buffer, "Offset"):
        pytest.skip("this version of tflite does not know data behind the flatbuffer")
    assert np.array_equal(read(model, tmp_path).layers[0].weight, REAL)
    refusal(model.write()[:-1], tmp_path)


def _made(code: int, **quantisation: Any) -> Callable[[], Model]:
    def build() -> Model:
        model = Model()
        data = stored(REAL.astype(np.float16))
        model.operator(
            code,
            [model.tensor([1, 3, 5, 6], data, **quantisation)],
            [made := model.tensor([1, 3, 5, 6], name="w")],
        )
        return depthwise(model, made)

    return build


def _held(data: Any, **options: Any) -> Callable[[], Model]:
    def build() -> Model:
        model = Model()
        return depthwise(model, model.tensor([1, 3, 5, 6], data, name="w", **options))

    return build


INTEGERS = np.zeros((1, 3, 5, 6), np.int8)
SKIPPED: dict[str, tuple[Callable[[], Model], str]] = {
    "input": (_held(None), "its weights are no constant: they come from the input 'w'"),
    "computed": (_made(22), "its weights are made by RESHAPE, not evaluated here"),
    "sparse": (_made(DENSIFY, sparse=True, scale=[1.0]), "its weights are stored as a sparse"),
    "no scale": (_held(INTEGERS), "its weights are integers without a scale"),
    "type": (_held(INTEGERS, kind=8), "its weights are of the tensor type 8, which is not read"),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_weights_that_cannot_be_read_are_skipped_with_the_reason(tmp_path: Path, case: str) -> None:
    build, reason = SKIPPED[case]
    bank = read(build(), tmp_path)
    assert not bank.layers
    assert bank.skipped[0][1].startswith(reason)


# ------------------------------------------------------------------ damage


def small() -> bytes:
    model = Model()
    weight = model.tensor([1, 3, 5, 6], stored(REAL.astype(np.float16)), name="w")
    model.operator(DEQUANTIZE, [weight], [real := model.tensor([1, 3, 5, 6])])
    return depthwise(model, real).write()


def test_a_file_cut_at_any_length_is_refused(tmp_path: Path) -> None:
    content = small()
    assert read(content, tmp_path).sizes == {(3, 5): 6}
    for length in range(len(content)):
        refusal(content[:length], tmp_path)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=400), marked=st.booleans())
def test_random_bytes_are_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, marked: bool
) -> None:
    content = content[:4] + b"TFL3" + content[4:] if marked else content
    refusal(content + b"\xff", tmp_path_factory.mktemp("random"))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(small())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    try:
        assert isinstance(read(bytes(content), folder), FilterBank)
    except SourceError:
        refusal(bytes(content), folder)


DAMAGED: dict[str, tuple[Callable[[], Model], str]] = {
    "too few weights": (_held(REAL[1:]), "a tensor of shape [1, 3, 5, 6] has 75 values"),
    "scales": (_held(INTEGERS, scale=[1.0, 2.0], axis=3), "2 scales do not fit"),
    "axis": (_held(INTEGERS, scale=[1.0], axis=7), "out of range"),
    "missing tensor": (lambda: depthwise(Model(), 77), "lacks its input 1"),
    "channels": (
        lambda: depthwise(model := Model(), model.tensor([1, 3, 5, 6], stored(REAL)), 4),
        "do not fit 4 input channels",
    ),
    "buffer": (lambda: depthwise(model := Model(), model.tensor([1], buffer=9)), "out of range"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_said(tmp_path: Path, case: str) -> None:
    build, what = DAMAGED[case]
    assert what in refusal(build(), tmp_path)


def test_operators_that_make_each_others_inputs_are_refused(tmp_path: Path) -> None:
    model = Model()
    a, b = model.tensor([1, 3, 5, 6]), model.tensor([1, 3, 5, 6])
    model.operator(DEQUANTIZE, [a], [b])
    model.operator(DEQUANTIZE, [b], [a])
    assert "each other" in refusal(depthwise(model, a), tmp_path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.tflite"):
        read_tflite(tmp_path / "nowhere.tflite", "net")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tflite", None)
    with pytest.raises(MissingExtraError, match=r"keyfilters\[tflite\]"):
        read_tflite(tmp_path / "net.tflite", "net")
