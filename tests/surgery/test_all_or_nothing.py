"""One call is not one per layer, and what fails leaves the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import keyfilters as kf
from keyfilters import init
from keyfilters.passes import main_tensor, run
from keyfilters.surgery.recalibrate import recalibrate_batchnorm_
from keyfilters.training.evaluate import logits
from keyfilters.treatment import Treatment
from tests.surgery.networks import batches, classifier

KEYS = [kf.KeySet.random(3, size=k) for k in (3, 5)]


class Recurrent(nn.Module):
    """One block, applied several times."""

    def __init__(self, times: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.times = times
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 1)
        for _ in range(30):
            self(batches(16, seed=1))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = x + self.mix(torch.relu(self.norm(self.depthwise(x))))
        return x.mean((2, 3))


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class Returns(nn.Module):
    def __init__(self, net: nn.Module, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], x) for k, x in before.items())


@pytest.mark.parametrize("model", [classifier(), Recurrent()])
def test_an_unchanged_model_keeps_its_statistics_bit_for_bit(model: nn.Module) -> None:
    same = copy.deepcopy(model)
    assert recalibrate_batchnorm_(same, model, batches(50, seed=3), batch_size=20) > 0
    assert unchanged(same, state(model))


def test_a_normalisation_that_is_called_again_gets_the_mean_of_its_corrections() -> None:
    model = Recurrent()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.depthwise.weight.mul_(2.0)
    images = batches(32)
    with torch.no_grad():
        off = float((scaled(images) - model(images)).norm())
        recalibrate_batchnorm_(scaled, model, images)
        assert float((scaled(images) - model(images)).norm()) < off / 2


def test_other_calls_or_normalisations_are_refused_unchanged() -> None:
    model, other = Recurrent(3), Recurrent(2)
    before = state(other)
    with pytest.raises(kf.KeyFiltersError, match="call their batch normalisations differently"):
        recalibrate_batchnorm_(other, model, batches(4))
    assert unchanged(other, before)


def test_all_calls_of_a_layer_count() -> None:
    """Of a layer called twice, on small and on large inputs, both decide on the key."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(8, 8, 5, padding=2, groups=8)

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x) + self.conv(10 * x.flip(3).cumsum(3))).mean((2, 3))

    class Side(Twice):
        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([x, 10 * x.flip(3).cumsum(3)])
            return self.conv(both).mean((2, 3))

    images, options = batches(6), {"ridge": 0.0, "recalibrate": False, "batch_size": 6}
    twice, side = Twice(), Side()
    for net in (twice, side):
        kf.replace_filters_(net, KEYS[1], images=images, **options)
    torch.testing.assert_close(twice.conv.weight, side.conv.weight, atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize(
    "wrap",
    [lambda y: {"aux": y[:, :1], "out": y}, lambda y: (y, None), lambda y: Output(None, y)],
)
def test_outputs_that_are_no_tensor(wrap: Callable[[Tensor], Any]) -> None:
    model = Returns(classifier(), wrap)
    assert logits(model, batches(3)).shape == (3, 12)
    bare = classifier()
    kf.replace_filters_(model, KEYS, images=batches(8))
    kf.replace_filters_(bare, KEYS, images=batches(8))
    assert unchanged(model.net, state(bare))


def test_outputs_without_a_tensor_are_refused_unchanged() -> None:
    model = Returns(classifier(), lambda y: {"ids": y.argmax(1)})
    before = state(model)
    with pytest.raises(kf.KeyFiltersError, match="wrap it in a module"):
        kf.replace_filters_(model, KEYS, images=batches(8))
    assert unchanged(model, before)
    with pytest.raises(kf.KeyFiltersError, match="dict without a floating tensor"):
        main_tensor({})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused_unchanged(value: float) -> None:
    model, images = classifier(), batches(8)
    before = state(model)
    images[3, 0, 5, 5] = value
    for call in (
        lambda: kf.replace_filters_(model, KEYS, images=images),
        lambda: recalibrate_batchnorm_(model, model, images),
        lambda: logits(model, images),
    ):
        with pytest.raises(kf.KeyFiltersError, match="1 of 8 images hold NaN or infinity"):
            call()
    assert unchanged(model, before)


def test_a_network_that_fails_is_said_in_one_sentence_and_stays() -> None:
    model = classifier().train()
    before = state(model)
    with pytest.raises(kf.KeyFiltersError, match=r"images of shape \(1, 3, 9, 9\): RuntimeError"):
        kf.replace_filters_(model, KEYS, images=torch.randn(2, 3, 9, 9))
    assert unchanged(model, before) and all(m.training for m in model.modules())


def test_failing_halfway_leaves_the_model_as_it_was() -> None:
    model = classifier()
    before, seen = state(model), []

    def fail(name: str) -> None:
        seen.append(name)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kf.replace_filters_(model, KEYS, images=batches(8), progress=fail)
    assert unchanged(model, before)


def test_narrowing_that_overflows_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 5, groups=8)).half()
    before = state(model)
    for call in (
        lambda: kf.initialize_filters_(model, "impulse", scale=1e6),
        lambda: kf.transfer_filters_(model, kf.read({"a": torch.full((8, 1, 5, 5), 1e6)})),
        lambda: init.impulse_(model[0].weight, scale=1e6),
        lambda: init.center_surround_(model[0].weight, std=1e7),
    ):
        with pytest.raises(kf.KeyFiltersError, match="float16 cannot hold"):
            call()
    assert unchanged(model, before)
    plain = {"first.weight": torch.ones(2, 2, 3, 3), "a.weight": torch.full((8, 1, 5, 5), 6e4)}
    plain["a.weight"][:, :, 0] = -6e4
    plain = {name: x.half() for name, x in plain.items()}
    with pytest.raises(kf.KeyFiltersError, match="float16 cannot hold"):
        kf.initialize_filters_(plain, "impulse", scale=1e6)
    wide = {"a.weight": torch.full((8, 1, 5, 5), 1e300, dtype=torch.float64)}
    with pytest.raises(kf.KeyFiltersError, match="beyond the range of float32"):
        kf.read(wide)


def test_initialisers_take_eight_bit_floats() -> None:
    weight = torch.zeros(8, 1, 5, 5).to(torch.float8_e4m3fn)
    init.center_surround_(weight)
    assert float(weight.float().abs().max()) > 0


def test_what_a_network_keeps_of_a_pass_serves_in_training() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.kept = classifier(), None

        def forward(self, x: Tensor) -> Tensor:
            if self.kept is None:
                self.kept = torch.rand(12) * 0 + 1
            return self.net(x) * self.kept

    model = Keeps()
    before = torch.random.get_rng_state()
    logits(model, batches(2))
    kf.replace_filters_(model, KEYS, images=batches(4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.kept.is_inference()
    run(model, batches(1))
    model.train()(batches(2)).sum().backward()


def test_weights_made_in_inference_mode_can_be_written() -> None:
    with torch.inference_mode():
        model = classifier()
    kf.replace_filters_(model, KEYS)
    index, a, b, _ = KEYS[0].assign(model[0].weight[:, 0].numpy())
    found = KEYS[0].reconstruct(index, a, b)
    np.testing.assert_allclose(model[0].weight[:, 0].numpy(), found, atol=1e-6)


def test_the_normalisation_behind_a_layer_is_found_by_running(tmp_path: Any) -> None:
    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(16)
            self.wrong = nn.BatchNorm2d(8)
            self.a = nn.Conv2d(8, 8, 3, groups=8, padding=1)
            self.b = nn.Conv2d(8, 8, 5, groups=8, padding=2)
            self.unused = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(torch.cat([self.a(x), torch.relu(self.b(x))], 1)).mean((2, 3))

    model = Elsewhere()
    frozen = kf.freeze_filters_(model, batchnorm="eval")
    assert frozen.table["batchnorm"].tolist() == ["norm", "norm"]
    model.train()(torch.randn(2, 8, 9, 9))
    frozen.check()
    kf.surgery.unfreeze_filters_(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_recipe_borrows_filters_only_for_the_layers_that_get_keys(tmp_path: Any) -> None:
    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, groups=8), nn.Conv2d(8, 8, 3, groups=8)
        )

    KEYS[0].save(tmp_path / "keys.npz")
    torch.save(net(1).state_dict(), tmp_path / "lender.pth")
    model = net(0)
    before = state(model)
    filters = Treatment(keys=str(tmp_path / "keys.npz"), assign_from=str(tmp_path / "lender.pth"))
    filters.apply_(model)
    assert torch.equal(model[1].weight, before["1.weight"])
    index, a, b, _ = KEYS[0].assign(net(1)[2].weight[:, 0].detach().numpy())
    drawn = model[2].weight[:, 0].detach().numpy()
    np.testing.assert_allclose(drawn, KEYS[0].reconstruct(index, a, b), atol=1e-6)


def test_parametrised_scales_survive_empty_memory() -> None:
    keys = kf.KeySet.published("lindeberg2026-B", 5)
    model = nn.Sequential(nn.Conv2d(8, 8, 5, groups=8))
    kf.parametrize_filters_(model, keys, ("sigma", "bias"), unit_norm=True)
    kept, expected = state(model), model[0].weight.detach().clone()
    model = model.to("meta").to_empty(device="cpu")
    del kept["0.parametrizations.weight.0.unit"]  # as files of the first version
    model.load_state_dict(kept)
    torch.testing.assert_close(model[0].weight, expected)


def test_images_that_are_no_tensor_are_refused_unchanged() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
    before = net[1].weight.detach().clone()
    images: Any = np.zeros((4, 3, 9, 9), np.float32)
    with pytest.raises(kf.KeyFiltersError, match="images are a ndarray"):
        kf.replace_filters_(net, kf.KeySet.random(4, 3), images=images)
    assert torch.equal(net[1].weight, before)
