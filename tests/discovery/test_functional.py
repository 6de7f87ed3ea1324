from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import keyfilters as kf
from keyfilters.discovery.functional import eliminate_by_answers
from keyfilters.discovery.shares import OutputShares
from keyfilters.input_covariance import Settings
from keyfilters.keyset import KeySet
from keyfilters.surgery import recalibrate_batchnorm_, replace_filters_
from tests.surgery.networks import batches, classifier


def slow(model: nn.Module, pool: KeySet, images: torch.Tensor) -> tuple[list[int], list[float]]:
    """Try every candidate for every drop, each with a model of its own."""

    def kl(alive: list[int]) -> float:
        changed = copy.deepcopy(model)
        replace_filters_(changed, pool[alive])
        recalibrate_batchnorm_(changed, model, images)
        with torch.no_grad():
            p, q = (m(images).double().log_softmax(1) for m in (model, changed))
        return float((p.exp() * (p - q)).sum(1).mean())

    alive = list(range(len(pool)))
    order, values = [], [kl(alive)]
    while len(alive) > 1:
        left = {c: kl([x for x in alive if x != c]) for c in alive}
        order.append(min(left, key=left.__getitem__))
        values.append(left[order[-1]])
        alive.remove(order[-1])
    return [*order, *alive], values


def test_trying_all_candidates_is_the_exact_search() -> None:
    model, images = classifier(), batches(16)
    before = copy.deepcopy(model.state_dict())
    pool = KeySet.random(5, size=5, seed=2)
    found, curve = eliminate_by_answers(model, pool, images, tries=None, batch_size=16)
    order, values = slow(model, pool, images)
    # One pass that corrects and measures, against one that corrects and one that measures.
    np.testing.assert_allclose(curve["kl"], values, rtol=1e-3, atol=1e-6)
    assert found.order.tolist() == order
    assert curve["keys"].tolist() == [5, 4, 3, 2, 1] and curve["tried"].tolist() == [1, 5, 4, 3, 2]
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())


def test_candidates_that_serve_nothing_go_first_and_without_a_trial() -> None:
    model, images = classifier(), batches(8)
    own = kf.read(model).layers[1].weight
    useless = KeySet.random(1, size=5, seed=9)
    flat = own.reshape(16, -1) - own.reshape(16, -1).mean(1, keepdims=True)
    flat = flat - np.outer(flat @ useless.filters.ravel(), useless.filters.ravel())
    with torch.no_grad():  # no filter of the layer has anything of this candidate
        model[3].weight.copy_(torch.tensor(flat.reshape(16, 1, 5, 5)))
    pool = KeySet.from_filters(np.concatenate([useless.filters, flat[:4].reshape(4, 5, 5)]))
    found, curve = eliminate_by_answers(model, pool, images, tries=1)
    assert found.order[0] == 0 and curve["tried"].tolist() == [1, 0, 1, 1, 1]
    assert curve["kl"][1] == curve["kl"][0]


def test_networks_without_normalisation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 8, 5, groups=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    found, curve = eliminate_by_answers(model, KeySet.random(4, size=5), batches(8))
    assert sorted(found.order.tolist()) == [0, 1, 2, 3] and curve["kl"].notna().all()


def test_discovery_by_agreement() -> None:
    model, images = classifier(), batches(16)
    options = {"size": 5, "count": 10, "kinds": ["lines"], "rounds": 1}
    found = kf.discover_keys(
        kf.read(model), criterion="agreement", model=model, images=images, keys=4, **options
    )
    by_shape = kf.discover_keys(kf.read(model), keys=4, **options)
    assert len(found.keys) == 4 and found.curve["kl"].notna().all()
    at = found.curve.set_index("keys")
    assert at["kl"][4] < at["kl"][1]
    assert by_shape.value >= found.value - 1e-9  # shape alone explains shapes better


def test_networks_in_half_precision_are_asked_too() -> None:
    model, images = classifier().bfloat16(), batches(8).bfloat16()
    options = {"size": 5, "count": 4, "kinds": ["lines"], "rounds": 1, "keys": 2, "nulls": ()}
    found = kf.discover_keys(
        kf.read(model), criterion="agreement", model=model, images=images, **options
    )
    assert len(found.keys) == 2 and found.curve["kl"].notna().all()


def test_what_does_not_fit_is_refused() -> None:
    model, images = classifier(), batches(4)
    with pytest.raises(kf.KeyFiltersError, match="no 7×7 depthwise filters"):
        eliminate_by_answers(model, KeySet.random(4, size=7), images)
    with pytest.raises(kf.KeyFiltersError, match="tries must be at least 1"):
        eliminate_by_answers(model, KeySet.random(4, size=5), images, tries=0)
    with pytest.raises(kf.KeyFiltersError, match=r"classes\) is expected"):
        eliminate_by_answers(model[:5], KeySet.random(4, size=5), images)


def test_labelled_accuracy_is_the_exact_search_too() -> None:
    model, images = classifier(), batches(24)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:6] = (labels[:6] + 1) % 3  # so that accuracy is below 1 even unchanged
    pool = KeySet.random(4, size=5, seed=3)
    found, curve = eliminate_by_answers(model, pool, images, labels, tries=None, batch_size=24)

    def measure(alive: list[int]) -> tuple[float, float]:
        changed = copy.deepcopy(model)
        replace_filters_(changed, pool[alive])
        recalibrate_batchnorm_(changed, model, images)
        with torch.no_grad():
            answers = changed(images).double()
        right = float((answers.argmax(1) == labels).double().mean())
        return -right, float(nn.functional.cross_entropy(answers, labels))

    alive = list(range(4))
    for dropped, value in zip(found.order[:-1], found.values, strict=False):
        assert -measure(alive)[0] == pytest.approx(value)
        assert dropped == min(alive, key=lambda c: measure([x for x in alive if x != c]))
        alive.remove(int(dropped))
    assert curve["loss"].notna().all() and list(curve)[:3] == ["keys", "accuracy", "loss"]
    with pytest.raises(kf.KeyFiltersError, match="labels are"):
        eliminate_by_answers(model, pool, images, labels[:5])


def test_a_search_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    model, images = classifier(), batches(8)
    pool = KeySet.random(6, size=5, seed=2)
    whole, curve = eliminate_by_answers(model, pool, images)
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eliminate_by_answers(model, pool, images, folder=tmp_path, progress=tell)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text() + '{"dropped": 1, "sho')  # killed while it wrote
    told = [""] * 3
    again, same = eliminate_by_answers(model, pool, images, folder=tmp_path, progress=told.append)
    assert len(told) == 3 + 3  # five drops, of which two were noted
    assert again.order.tolist() == whole.order.tolist()
    pd.testing.assert_frame_equal(same, curve)
    eliminate_by_answers(model, pool, images[:4], folder=tmp_path)  # another search
    assert len(list(tmp_path.iterdir())) == 2


def test_discovery_by_outputs_keeps_more_of_them() -> None:
    model, images = classifier(), batches(16)
    options = {"size": 5, "count": 10, "kinds": ["lines"], "rounds": 1, "keys": 3}
    bank = kf.read(model)
    found = kf.discover_keys(bank, criterion="outputs", model=model, images=images, **options)
    by_shape = kf.discover_keys(bank, **options)
    kept = OutputShares(model, 5, Settings(images))
    assert kept(found.keys).max(1).mean() == pytest.approx(found.value)
    assert found.value > kept(by_shape.keys).max(1).mean()
    assert found.curve["covariance"].min() > 0 and found.curve["value"].max() <= 1


def test_output_gains_are_what_a_slow_regression_explains() -> None:
    torch.manual_seed(0)
    model, images = classifier(), batches(6)
    keys = KeySet.random(3, size=5)
    found = OutputShares(model, 5, Settings(images, places=10_000, ridge=0.0))(keys)
    filters = model[3].weight.detach().double().numpy()[:, 0]
    with torch.no_grad():
        inputs = nn.functional.pad(model[:3](images), (2, 2, 2, 2)).double()
    for channel in range(16):
        patches = nn.functional.unfold(inputs[:, channel : channel + 1], 5, stride=2)
        patches = patches.transpose(0, 1).reshape(25, -1).numpy()
        y = filters[channel].ravel() @ patches
        for k, x in enumerate(keys.filters):
            design = np.stack([x.ravel() @ patches, patches.sum(0), np.ones_like(y)], axis=1)
            left = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
            assert found[channel, k] == pytest.approx(1 - left.var() / y.var(), abs=1e-4)
