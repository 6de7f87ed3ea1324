"""Keras files: models in models, wrapped layers, files without a configuration, limits, damage."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keyfilters as kf
from keyfilters.errors import SourceError
from keyfilters.sources.collect import BY_NAME

h5py = pytest.importorskip("h5py")
pytest.importorskip("pyfive")
from keyfilters.sources import keras_files  # noqa: E402
from keyfilters.sources.keras_files import read_keras  # noqa: E402
from tests.sources.tiny_models import FILTERS, HWCM, HWIO  # noqa: E402

Config = dict[str, Any]


def layer(kind: str, name: str, **config: Any) -> Config:
    return {"class_name": kind, "config": {"name": name, **config}}


def model(*layers: Any, kind: str = "Functional", name: str = "net") -> Config:
    return layer(kind, name, layers=list(layers))


DEPTHWISE = layer("DepthwiseConv2D", "dw", strides=2, padding="valid", dilation_rate=[1, 1])


def fill(file: Any, datasets: Mapping[str, Any], names: Mapping[str, str] | None = None) -> None:
    for place, value in datasets.items():
        file[place] = value
    for place, name in (names or {}).items():
        file.require_group(f"{place}/vars").attrs["name"] = name


def h5(folder: Path, datasets: Mapping[str, Any], config: Any = None) -> Path:
    with h5py.File(folder / "net.h5", "w") as file:
        fill(file, datasets)
        if config is not None:
            file.attrs["model_config"] = config
    return folder / "net.h5"


def archive(
    folder: Path, config: Config, datasets: Mapping[str, Any], names: Mapping[str, str]
) -> Path:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        fill(file, datasets, names)
    with zipfile.ZipFile(folder / "net.keras", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("config.json", json.dumps(config))
        opened.writestr("model.weights.h5", content.getvalue())
    return folder / "net.keras"


# ------------------------------------------------------------------ configurations

KERNEL = "model_weights/dw/dw/depthwise_kernel:0"
TEXT = json.dumps(model(DEPTHWISE))
CONFIGURATIONS = {
    "text": TEXT,
    "bytes": np.bytes_(TEXT),
    "array": np.array([TEXT.encode()]),
    "model in a model": json.dumps(model(model(DEPTHWISE), name="outer")),
    "oldest": json.dumps({"class_name": "Sequential", "config": [DEPTHWISE]}),
    "odd layers": json.dumps(model(3, {"class_name": "X"}, {"config": 5}, DEPTHWISE)),
}


@pytest.mark.parametrize("way", CONFIGURATIONS)
def test_configurations_however_they_are_stored(tmp_path: Path, way: str) -> None:
    [found] = kf.read(h5(tmp_path, {KERNEL: HWCM}, CONFIGURATIONS[way])).layers
    np.testing.assert_array_equal(found.weight, FILTERS)
    assert (found.name, found.stride, found.padding) == ("dw", (2, 2), (0, 0))


def test_strides_that_are_no_numbers_are_unknown(tmp_path: Path) -> None:
    odd = json.dumps(model(layer("DepthwiseConv2D", "dw", strides=["a", "b"])))
    assert kf.read(h5(tmp_path, {KERNEL: HWCM}, odd)).layers[0].stride is None


WRAPPED = model(
    layer("InputLayer", "image"),
    layer("Conv2D", "pw"),
    layer("TimeDistributed", "td", layer=layer("Activation", "relu")),
    layer("TimeDistributed", "td_1", layer=DEPTHWISE),
    layer("TimeDistributed", "td_2", layer=model(layer("Rescaling", "r"), DEPTHWISE)),
    model(layer("DepthwiseConv2D", "deep"), name="inner"),
)
PLACES = {  # after the classes in snake case, numbered inside their model; a wrapped one is `layer`
    "layers/conv2d": HWIO,
    "layers/time_distributed_1/layer": HWCM,
    "layers/time_distributed_2/layer/layers/depthwise_conv2d": HWCM * 2,
    "layers/functional/layers/depthwise_conv2d": HWCM * 3,
}
NAMES = {
    **dict(zip(PLACES, ("pw", "dw", "dw", "deep"), strict=True)),
    "layers/time_distributed_1": "td_1",
    "layers/time_distributed_2": "td_2",
    "layers/time_distributed_2/layer": "net",
    "layers/functional": "inner",
}


@pytest.mark.parametrize("names", [{}, NAMES], ids=["by class", "by name"])
def test_layers_in_wrappers_and_models(tmp_path: Path, names: dict[str, str]) -> None:
    datasets = {f"{place}/vars/0": value for place, value in PLACES.items()}
    extra = {"seed/state": np.ones(2, np.uint32), "optimizer/vars/0": np.ones((), np.int64)}
    bank = kf.read(archive(tmp_path, WRAPPED, datasets | extra, names))
    assert [x.name for x in bank.layers] == ["dw", "dw", "deep"]
    for factor, found in enumerate(bank.layers, 1):
        np.testing.assert_array_equal(found.weight, FILTERS * factor)
    assert [name for name, _ in bank.skipped] == ["net/pw"]


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    config = model(
        layer("ConvLSTM2D", "film"),
        layer("Conv2D", "lost"),
        model(DEPTHWISE, kind="ConvNet", name="inner"),  # whose layers are read
    )
    datasets = {
        "model_weights/film/film/kernel:0": np.ones((3, 3, 4, 8), np.float32),
        "model_weights/inner/dw/depthwise_kernel:0": HWCM,
    }
    bank = read_keras(h5(tmp_path, datasets, json.dumps(config)), "net")
    assert [x.name for x in bank.layers] == ["dw"]
    (film, why), (lost, absent) = bank.skipped
    assert (film, lost) == ("net/film", "net/lost")
    assert "ConvLSTM2D" in why and "not in the file" in absent


def deep(levels: int) -> str:
    config = DEPTHWISE
    for _ in range(levels):
        config = model(config)
    return json.dumps(config)


def test_models_lie_in_each_other_up_to_a_depth(tmp_path: Path) -> None:
    assert len(kf.read(h5(tmp_path, {KERNEL: HWCM}, deep(30)))) == 4
    with pytest.raises(SourceError, match="deep"):
        kf.read(h5(tmp_path, {KERNEL: HWCM}, deep(40)))


# ------------------------------------------------------------------ no configuration

UNCONFIGURED: dict[str, dict[str, Any]] = {
    "older": {"dw/dw/depthwise_kernel:0": HWCM, "pw/pw/kernel:0": HWIO},
    "Keras 3": {
        "layers/conv2d/vars/0": HWIO,
        "layers/depthwise_conv2d/vars/0": HWCM,
        "layers/depthwise_conv2d/vars/1": np.ones(4, np.float32),
        "layers/conv2d_transpose/vars/0": HWCM,  # taps, outputs, inputs: not told from a dense one
        "optimizer/vars/0": HWCM,
    },
}


@pytest.mark.parametrize("layout", UNCONFIGURED)
def test_names_alone(tmp_path: Path, layout: str) -> None:
    bank = kf.read(h5(tmp_path, UNCONFIGURED[layout]))
    [found] = bank.layers
    np.testing.assert_array_equal(found.weight, FILTERS)
    assert found.stride is None
    [(_, why)] = bank.skipped
    assert "pointwise" in why


# ------------------------------------------------------------------ what else a file may hold


def with_a_type(file: Any) -> None:
    file["type"] = np.dtype("f4")


def with_texts(file: Any) -> None:
    file["model_weights/dw/notes"] = [b"one", b"two"]


def with_groups(file: Any) -> None:
    file.create_group("/".join("g" * 40))


def with_a_broken_link(file: Any) -> None:
    file["model_weights/dw/link"] = h5py.SoftLink("/nowhere")


@pytest.mark.parametrize("add", [with_a_type, with_texts, with_groups, with_a_broken_link])
def test_other_objects_are_passed_over(tmp_path: Path, add: Callable[[Any], None]) -> None:
    path = h5(tmp_path, {KERNEL: HWCM}, TEXT)
    with h5py.File(path, "a") as file:
        add(file)
    [found] = kf.read(path).layers
    np.testing.assert_array_equal(found.weight, FILTERS)


def test_compressed_kernels(tmp_path: Path) -> None:
    path = h5(tmp_path, {}, TEXT)
    with h5py.File(path, "a") as file:
        options = {"chunks": (2, 3, 2, 1), "compression": "gzip", "shuffle": True}
        file.create_dataset(KERNEL, data=HWCM, **options)
    [found] = kf.read(path).layers
    np.testing.assert_array_equal(found.weight, FILTERS)


def test_a_block_of_the_user_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "net.h5", "w", userblock_size=512) as file:
        file[KERNEL] = HWCM
    with pytest.raises(SourceError, match="user block"):
        kf.read(tmp_path / "net.h5")


def test_groups_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = h5(tmp_path, {KERNEL: HWCM, "/".join("g" * 70): HWCM}, TEXT)
    with pytest.raises(SourceError, match="deep"):
        kf.read(path)
    path = h5(tmp_path, {KERNEL: HWCM, **{f"d{i}": HWCM for i in range(20)}}, TEXT)
    assert len(kf.read(path)) == 4
    monkeypatch.setattr(keras_files, "MOST", 10)
    with pytest.raises(SourceError, match="more than 10"):
        kf.read(path)


def giant(group: Any) -> None:
    """400 MB of nothing, which take no place in the file."""
    group.create_dataset("depthwise_kernel:0", (4096, 4096, 3, 1), "f8")


def one_chunk(group: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 2**32, (3, 3, 30_000, 1), np.uint32)
    whole = {"data": noise.view(np.float32), "chunks": noise.shape}
    group.create_dataset("depthwise_kernel:0", compression="gzip", compression_opts=1, **whole)


@pytest.mark.parametrize(("add", "reason"), [(giant, "values"), (one_chunk, "1 MB")])
def test_giant_kernels_are_not_loaded(
    tmp_path: Path, add: Callable[[Any], None], reason: str
) -> None:
    config = json.dumps(model(layer("DepthwiseConv2D", "giant"), DEPTHWISE))
    path = h5(tmp_path, {KERNEL: HWCM}, config)
    with h5py.File(path, "a") as file:
        add(file.create_group("model_weights/giant/giant"))
    bank = read_keras(path, "net")
    assert [x.name for x in bank.layers] == ["dw"]
    [(name, why)] = bank.skipped
    assert name == "net/giant" and reason in why


def test_an_archive_that_unpacks_to_far_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path, model(DEPTHWISE), {"layers/depthwise_conv2d/vars/0": HWCM}, {})
    assert len(kf.read(path)) == 4
    monkeypatch.setattr(keras_files, "LARGEST_PART", 1000)
    with pytest.raises(SourceError, match="unpacks"):
        kf.read(path)


def test_weights_alone_come_in_the_order_of_the_lists_of_names(tmp_path: Path) -> None:
    names = ["conv_dw_2", "conv_dw_1", "conv_dw_10"]
    inside = [f"block/{i}/depthwise_kernel:0" for i in (3, 20, 4)]
    datasets = {f"{name}/{name}/depthwise_kernel:0": HWCM for name in names}
    path = h5(tmp_path, datasets | {f"inner/{name}": HWCM for name in inside})
    with h5py.File(path, "a") as file:
        file.attrs["layer_names"] = [x.encode() for x in (*names, "inner", "no_weights")]
        file["inner"].attrs["weight_names"] = [x.encode() for x in inside]
    layers = kf.read(path).layers
    expected = [f"{name}/{name}" for name in names] + [f"inner/block/{i}" for i in (3, 20, 4)]
    assert [x.name for x in layers] == expected
    assert not any(BY_NAME in x.note for x in layers)


def test_weights_alone_of_keras_3_come_in_the_order_of_numbers(tmp_path: Path) -> None:
    groups = [f"layers/depthwise_conv2d{end}" for end in ("", "_2", "_10")]
    layers = kf.read(h5(tmp_path, {f"{group}/vars/0": HWCM for group in groups})).layers
    assert [x.name for x in layers] == [group.removeprefix("layers/") for group in groups]
    assert all(BY_NAME in x.note for x in layers)


def test_names_of_layers_may_hold_a_slash(tmp_path: Path) -> None:
    names = [f"expanded_conv_{i}/depthwise" for i in (1, 2, 10)]
    layers = [layer("DepthwiseConv2D", name, strides=[2, 2]) for name in names]
    kernels = {f"model_weights/{x}/{x}/depthwise_kernel:0": HWCM for x in names}
    bank = kf.read(h5(tmp_path, kernels, json.dumps(model(*layers))))
    assert [(x.name, x.stride) for x in bank.layers] == [(name, (2, 2)) for name in names]
    assert not bank.skipped
