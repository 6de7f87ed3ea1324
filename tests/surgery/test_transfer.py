from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Generator, nn

import keyfilters as kf
from keyfilters.bank import FilterBank, Layer
from keyfilters.errors import KeyFiltersError, NoFiltersError
from keyfilters.receptive_fields.families import family
from keyfilters.receptive_fields.resize import crop_or_pad
from keyfilters.surgery.transfer import CONTROLS, transfer_filters_


def net(*shapes: tuple[int, int], seed: int = 0) -> nn.Sequential:
    """Depthwise layers of so many channels and taps a side."""
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Conv2d(c, c, k, groups=c) for c, k in shapes))


def bank(*layers: tuple[str, np.ndarray, float]) -> FilterBank:
    return FilterBank(
        [Layer("net", name, w.astype(np.float32), None, None, depth) for name, w, depth in layers]
    )


def taps(count: int, *size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *size)).astype(np.float32)


def filters(conv: nn.Module) -> np.ndarray:
    return conv.weight.detach()[:, 0].numpy().copy()


# -- which source a layer gets


def test_one_to_one_by_name_whatever_the_order_and_width() -> None:
    target = net((8, 5), (8, 5), (8, 3))
    source = bank(
        ("2", taps(8, 5, 5, seed=2), 0.0), ("0", taps(8, 5, 5), 0.5), ("1", taps(16, 5, 5), 1.0)
    )
    report = transfer_filters_(target, source)
    assert report["source"].tolist() == ["0", "1", "2"]
    assert report["how"].tolist() == ["copied", "copied", "cropped"]
    assert report["resampling"].tolist() == ["in order", "sampled", "in order"]
    assert np.array_equal(filters(target[0]), source.layers[1].weight)
    assert np.array_equal(filters(target[2]), source.layers[0].weight[:, 1:-1, 1:-1])


def test_one_to_one_by_place_between_unlike_names() -> None:
    source = net((8, 5), (6, 3), (6, 3), seed=1)
    target = nn.ModuleDict(
        {f"block{i}": conv for i, conv in enumerate(net((8, 5), (6, 3), (6, 3)))}
    )
    biases = [conv.bias.clone() for conv in target.values()]
    report = transfer_filters_(target, kf.read(source), layers=["block1", "block2"])
    assert "not among" in report["left"][0] and (report["left"][1:] == "").all()
    assert report["source"][1:].tolist() == ["1", "2"] and np.allclose(report["cosine"][1:], 1)
    for i, (old, new) in enumerate(zip(source, target.values(), strict=True)):
        assert torch.equal(old.weight, new.weight) == (i > 0)
        assert torch.equal(new.bias, biases[i])


def test_otherwise_the_nearest_depth_among_the_same_size() -> None:
    target = net(*[(4, 5)] * 5, (4, 9))  # depths 0, .2, .4, .6, .8, 1
    source = bank(
        ("a", taps(4, 5, 5), 0.0),
        ("b", taps(4, 3, 3), 0.25),
        ("c", taps(4, 5, 5, seed=3), 0.4),
        ("d", taps(4, 3, 3), 0.9),
    )
    report = transfer_filters_(target, source)
    # 0.2 lies between a and c: the earlier one. None has 9×9: the nearest of all.
    assert report["source"].tolist() == ["a", "a", "c", "c", "c", "d"]
    assert report["source_depth"].tolist() == [0, 0, 0.4, 0.4, 0.4, 0.9]
    assert report["source_size"].tolist() == ["5×5"] * 5 + ["3×3"]
    assert report["size"].tolist() == ["5×5"] * 5 + ["9×9"]
    # What a layer gets does not depend on which others are asked for.
    part = transfer_filters_(net(*[(4, 5)] * 5, (4, 9)), source, layers=["3"])
    assert part.iloc[3].equals(report.iloc[3])


@pytest.mark.parametrize(
    ("target", "source"),
    [("test_convnext", "test_efficientnet"), ("test_efficientnet", "test_convnext")],
)
def test_between_architectures(target: str, source: str) -> None:
    model = timm.create_model(target, pretrained=False)
    given = kf.read(timm.create_model(source, pretrained=False))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    report = transfer_filters_(model, given, seed=1)
    layers = {layer.name: layer for layer in given.layers}
    for row in report.itertuples():
        distance = {name: abs(layer.depth - row.depth) for name, layer in layers.items()}
        assert row.source == min(distance, key=lambda name: distance[name])
        written, old = filters(model.get_submodule(row.layer)), layers[row.source].weight
        if target == "test_convnext":
            assert row.how == "padded" and row.cosine == pytest.approx(1)
            assert row.resampling == "sampled"
            inner = written[:, 2:5, 2:5]
            assert (written**2).sum() == pytest.approx((inner**2).sum())
            taken = [int(np.abs(old - f).max((1, 2)).argmin()) for f in inner]
            assert np.array_equal(inner, old[taken]) and taken == sorted(set(taken))
        else:
            assert row.how == "cropped" and 0 < row.cosine < 1
            assert row.resampling == "repeated"
            inner = old[:, 2:5, 2:5]
            times = [(np.abs(written - f).max((1, 2)) == 0).sum() for f in inner]
            assert sum(times) == len(written) and max(times) - min(times) <= 1
    moved = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert moved == {f"{name}.weight" for name in report["layer"]}
    model(torch.randn(1, 3, 96, 96))


# -- sizes


def slow_crop_or_pad(old: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    new = np.zeros((len(old), *size))
    height, width = old.shape[1:]
    for y in range(size[0]):
        for x in range(size[1]):
            row = y - (size[0] - 1) // 2 + (height - 1) // 2
            column = x - (size[1] - 1) // 2 + (width - 1) // 2
            if 0 <= row < height and 0 <= column < width:
                new[:, y, x] = old[:, row, column]
    return new


@pytest.mark.parametrize("old", [(3, 3), (4, 7), (1, 6), (5, 2)])
@pytest.mark.parametrize("new", [(3, 3), (4, 4), (7, 1), (2, 6), (5, 5)])
def test_cropping_and_padding_keep_the_centre(old: tuple[int, int], new: tuple[int, int]) -> None:
    w = taps(3, *old).astype(float)
    assert np.array_equal(crop_or_pad(w, new), slow_crop_or_pad(w, new))


def test_a_padded_layer_computes_the_same_outputs() -> None:
    small = nn.Conv2d(4, 4, 4, groups=4, padding="same", bias=False)
    large = nn.Conv2d(4, 4, 7, groups=4, padding="same", bias=False)
    transfer_filters_(large, kf.read(small))
    x = torch.randn(1, 4, 9, 9)
    with warnings.catch_warnings():  # torch warns of even kernels, once in a process
        warnings.simplefilter("ignore", UserWarning)
        expected = small(x)
    torch.testing.assert_close(large(x), expected)


@pytest.mark.parametrize(
    ("resize", "smaller", "larger"),
    [
        ("auto", "cropped", "padded"),
        ("crop", "cropped", "rendered"),
        ("pad", "rendered", "padded"),
        ("render", "rendered", "rendered"),
    ],
)
def test_resizes(resize: str, smaller: str, larger: str) -> None:
    form, parameters = family("x:d y:0"), torch.tensor([[1.0, 0.8]], dtype=torch.float64)

    def model(k: int) -> np.ndarray:
        return -2 * form.render(parameters, (k, k)).numpy() + 0.1

    target = net((1 + 1, 3), (2, 9))
    report = transfer_filters_(target, bank(("a", model(5).repeat(2, 0), 0.0)), resize=resize)
    assert report["how"].tolist() == [smaller, larger]
    # Rendering goes on with the model itself; its central taps are those of cropping.
    np.testing.assert_allclose(filters(target[0])[0], model(3)[0], atol=2e-3)
    expected = model(9) if larger == "rendered" else crop_or_pad(model(5), (9, 9))
    np.testing.assert_allclose(filters(target[1])[0], expected[0], atol=2e-3)
    old, new = (crop_or_pad(x, (9, 9))[0].ravel() for x in (model(5), expected))
    cosine = old @ new / np.linalg.norm(old) / np.linalg.norm(new)
    assert report["cosine"][1] == pytest.approx(cosine, abs=1e-3)


def test_a_filter_without_a_shape_is_padded_where_others_are_rendered() -> None:
    w = taps(3, 3, 3)
    w[1] = 0
    target = net((3, 5))
    report = transfer_filters_(target, bank(("a", w, 0.0)), resize="render")
    assert report["how"][0] == "rendered, 1 without a shape padded"
    assert not filters(target[0])[1].any() and filters(target[0])[0].all()
    assert math.isfinite(report["cosine"][0])


def test_what_cannot_be_rendered_is_left_alone() -> None:
    target = net((4, 2), (4, 3))
    before = filters(target[1])
    report = transfer_filters_(target, bank(("a", taps(4, 2, 2), 0.0)), resize="render")
    assert report["how"][0] == "copied"
    assert report["left"][1].startswith("expected windows")
    assert np.array_equal(filters(target[1]), before)


# -- channels


@pytest.mark.parametrize(("have", "wanted"), [(6, 6), (20, 6), (6, 20), (1, 5), (7, 14)])
def test_channels(have: int, wanted: int) -> None:
    source = bank(("a", taps(have, 3, 3), 0.0))
    target, same, other = net((wanted, 3)), net((wanted, 3)), net((wanted, 3))
    report = transfer_filters_(target, source, seed=4)
    assert report[["source_filters", "filters"]].values.tolist() == [[have, wanted]]
    w = source.layers[0].weight
    taken = [int(np.abs(w - f).max((1, 2)).argmin()) for f in filters(target[0])]
    assert np.array_equal(filters(target[0]), w[taken]) and taken == sorted(taken)
    times = np.bincount(taken, minlength=have)
    assert times.max() - times.min() <= 1
    transfer_filters_(same, source, seed=4)
    assert torch.equal(same[0].weight, target[0].weight)
    transfer_filters_(other, source, seed=5)
    drawn = wanted % have != 0
    assert torch.equal(other[0].weight, target[0].weight) != (drawn and have > 1)


# -- controls


def controlled(control: str | None, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both layers of a network that gets 5×5 filters, fewer and padded, and as they are."""
    target = net((30, 7), (40, 5))
    source = bank(("a", taps(40, 5, 5) + 0.3, 0.0))
    report = transfer_filters_(target, source, control=control, **options)
    assert (report["control"] == (control or "")).all()
    return filters(target[0]), filters(target[1])


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_are_functions_of_the_seed(control: str) -> None:
    first, again, other = (controlled(control, seed=seed) for seed in (1, 1, 2))
    generated = [controlled(control, generator=Generator().manual_seed(9)) for _ in range(2)]
    plain = controlled(None, seed=1)
    for i in range(2):
        assert np.array_equal(first[i], again[i])
        assert not np.array_equal(first[i], other[i])
        assert not np.array_equal(first[i], plain[i])
        assert np.array_equal(generated[0][i], generated[1][i])


def test_random_keeps_mean_and_rms_of_every_filter_and_nothing_of_its_shape() -> None:
    for plain, random in zip(controlled(None), controlled("random"), strict=True):
        np.testing.assert_allclose(random.mean((1, 2)), plain.mean((1, 2)), atol=1e-6)
        np.testing.assert_allclose((random**2).sum((1, 2)), (plain**2).sum((1, 2)), rtol=1e-5)
        a, b = (x - x.mean((1, 2), keepdims=True) for x in (plain, random))
        cosine = (a * b).sum((1, 2)) / np.sqrt((a**2).sum((1, 2)) * (b**2).sum((1, 2)))
        assert abs(cosine.mean()) < 4 / math.sqrt(a.size)


def test_tap_shuffled_keeps_the_taps_of_every_filter() -> None:
    for plain, shuffled in zip(controlled(None), controlled("tap-shuffled"), strict=True):
        a, b = plain.reshape(len(plain), -1), shuffled.reshape(len(plain), -1)
        assert np.array_equal(np.sort(a, 1), np.sort(b, 1))
        # Every filter has a permutation of its own.
        places = {int(row.argmax()) for row in b}
        assert len(places) > 10
        order = [tuple(np.searchsorted(np.sort(x), x)) for x in a]
        assert [tuple(np.searchsorted(np.sort(x), x)) for x in b] != order


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_leave_the_padding(control: str) -> None:
    padded, _ = controlled(control)
    inner = crop_or_pad(padded.astype(float), (5, 5))
    assert np.array_equal(crop_or_pad(inner, (7, 7)), padded)
    assert control == "impulse" or (inner != 0).all()


def test_channel_shuffled_keeps_the_filters_of_every_layer() -> None:
    for plain, shuffled in zip(controlled(None), controlled("channel-shuffled"), strict=True):
        assert sorted(x.tobytes() for x in plain) == sorted(x.tobytes() for x in shuffled)


def test_impulses_keep_the_norm() -> None:
    for plain, impulse in zip(controlled(None), controlled("impulse"), strict=True):
        assert ((impulse != 0).sum((1, 2)) == 1).all()
        norm = np.sqrt((plain**2).sum((1, 2)))
        np.testing.assert_allclose(impulse.sum((1, 2)), norm, rtol=1e-6)
        assert len(set(impulse.reshape(len(impulse), -1).argmax(1))) > 10


def test_null_controls_keep_mean_norm_and_the_statistics_of_each_layer() -> None:
    """Of the taps that are there, since padding stays 0."""
    for kind in ("covariance", "phase"):
        for plain, null in zip(controlled(None), controlled(kind), strict=True):
            a, b = (crop_or_pad(x.astype(float), (5, 5)) for x in (plain, null))
            np.testing.assert_allclose(b.mean((1, 2)), a.mean((1, 2)), atol=1e-6)
            np.testing.assert_allclose(b.std((1, 2)), a.std((1, 2)), rtol=1e-5)
            spectra = [np.abs(np.fft.fft2(x)) for x in (a, b)]
            assert np.allclose(*spectra, atol=1e-5) is (kind == "phase")
    low = np.outer(*2 * [np.arange(5.0) - 2]) * np.array([1, -1])[np.arange(40) % 2, None, None]
    target = net((40, 5))
    transfer_filters_(target, bank(("a", low, 0.0)), control="covariance")
    found = filters(target[0]).reshape(40, -1)
    assert np.linalg.matrix_rank(found, tol=1e-3) == 1, "the covariance has one direction"


def test_a_control_of_filters_without_a_shape_stays_finite() -> None:
    w = np.stack([np.zeros((3, 3)), np.full((3, 3), 0.25)])
    for control in CONTROLS:
        target = net((2, 3))
        transfer_filters_(target, bank(("a", w, 0.0)), control=control)
        np.testing.assert_allclose(np.sort((filters(target[0]) ** 2).sum((1, 2))), [0, 9 / 16])


# -- other models, and what is refused


def test_state_dicts_and_other_precisions() -> None:
    source = kf.read(net((8, 5), (8, 3), seed=1))
    weights = {
        "state_dict": {"x.weight": torch.ones(8, 8, 1, 1), **net((8, 5), (8, 3)).state_dict()}
    }
    transfer_filters_(weights, source)
    assert np.array_equal(weights["state_dict"]["0.weight"][:, 0].numpy(), source.layers[0].weight)
    # The first convolution of a bare state dict is written only by its name.
    bare = net((8, 5), (8, 3)).state_dict()
    report = transfer_filters_(bare, source)
    assert report["layer"].tolist() == ["0", "1"] and "first convolution" in report["left"][0]
    assert transfer_filters_(bare, source, layers=["0"])["source"][0] == "0"
    half = net((8, 5), (8, 3)).bfloat16()
    transfer_filters_(half, source)
    expected = torch.from_numpy(source.layers[1].weight.copy()).bfloat16()
    assert torch.equal(half[1].weight[:, 0], expected)


def test_what_is_refused() -> None:
    target, source = net((4, 3), (4, 5)), kf.read(net((4, 3), (4, 5), seed=1))
    before = [filters(conv) for conv in target]
    for arguments, message in (
        ({"bank": source + source}, r"2 models: .*, .* \(2\); choose one"),
        ({"bank": net((4, 3))}, "type bank="),
        ({"control": "tap-shufled"}, "nearest names are: tap-shuffled"),
        ({"control": "?"}, "there are: random, tap-shuffled"),
        ({"resize": "stretch"}, "auto, crop, pad, render"),
        ({"layers": ["2"]}, "no depthwise layer is called '2'"),
        ({"bank": bank(("a", np.full((4, 5, 5), np.nan), 0))}, "nothing can be.*a, holds filters"),
    ):
        with pytest.raises(KeyFiltersError, match=message):
            transfer_filters_(target, **({"bank": source} | arguments))
    with pytest.raises(NoFiltersError, match="nothing to transfer"):
        transfer_filters_(target, FilterBank([]))
    with pytest.raises(NoFiltersError):
        transfer_filters_(nn.Linear(2, 2), source)
    assert all(np.array_equal(filters(conv), x) for conv, x in zip(target, before, strict=True))
    kf.parametrize_filters_(target, kf.KeySet.random(2, size=3))
    report = transfer_filters_(target, source)
    assert report["layer"].tolist() == ["0", "1"] and report["source"][1] == "1"
    assert "its weight is parametrised" in report["left"][0]
