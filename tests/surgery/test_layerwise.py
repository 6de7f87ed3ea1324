from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from keyfilters.input_covariance import (
    Settings,
    choose,
    gather,
    original_outputs,
    patches,
)
from keyfilters.keyset import KeySet
from keyfilters.surgery.recalibrate import batch_norms, recalibrate_batchnorm_
from keyfilters.surgery.replace import replace_filters_
from keyfilters.surgery.sensitivity import layer_sensitivity
from keyfilters.tracing import consumers, conv_calls, steps
from tests.surgery.networks import batches, classifier


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.Conv2d(4, 8, 5, groups=4, stride=2, padding=(2, 1)),
        nn.Conv2d(4, 4, (3, 5), groups=4, dilation=(2, 1), padding="same"),
    ],
)
def test_patches_are_what_the_filters_see(conv: nn.Conv2d) -> None:
    images = torch.randn(3, 4, 13, 11)
    [call] = conv_calls(nn.Sequential(conv, nn.ReLU()), [conv], images)
    assert call.module is conv and torch.equal(call.weight, conv.weight)
    expected = conv(images)
    seen = patches(call, 10_000, torch.Generator().manual_seed(0))
    found = torch.bmm(conv.weight.flatten(1)[:, None], seen)[:, 0] + conv.bias[:, None]
    # Places come in random order: compare as sorted numbers.
    for channel in range(len(found)):
        a, b = found[channel].sort().values, expected[:, channel].flatten().sort().values
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_statistics_and_choice_equal_a_slow_search() -> None:
    torch.manual_seed(0)
    model, images = classifier(), batches(6)
    settings = Settings(images, places=10_000, batch_size=4)
    weight = model[3].weight
    outputs = original_outputs(model, {"3": model[3]}, settings)["3"]
    statistics = gather(model, model[3], outputs, settings)
    keys = KeySet.random(3, size=5)
    filters = weight.detach().double().numpy()[:, 0]
    index, a, b = choose(filters, keys.filters[None], statistics, ridge=0.0)
    with torch.no_grad():
        inputs = nn.functional.pad(model[:3](images), (2, 2, 2, 2)).double()
    for channel in range(16):
        patches = nn.functional.unfold(inputs[:, channel : channel + 1], 5, stride=2)
        patches = patches.transpose(0, 1).reshape(25, -1).numpy()
        y = filters[channel].ravel() @ patches
        losses = []
        for x in keys.filters:
            design = np.stack([x.ravel() @ patches, patches.sum(0), np.ones_like(y)], axis=1)
            solution, *_ = np.linalg.lstsq(design, y, rcond=None)
            losses.append((np.mean((design @ solution - y) ** 2), solution))
        best = min(range(3), key=lambda i: losses[i][0])
        assert index[channel] == best
        np.testing.assert_allclose([a[channel], b[channel]], losses[best][1][:2], rtol=1e-3)
        new = a[channel] * keys.filters[best] + b[channel]
        new = np.broadcast_to(new, (16, 5, 5)).reshape(16, 25)
        error = statistics.error(torch.tensor(new))[channel]
        assert float(error) == pytest.approx(losses[best][0], rel=1e-3)


def test_a_large_ridge_gives_the_plain_choice() -> None:
    keys = [KeySet.random(6, size=k) for k in (3, 5)]
    plain, ridged = classifier(), classifier()
    replace_filters_(plain, keys)
    replace_filters_(ridged, keys, images=batches(8), ridge=1e9, recalibrate=False)
    for i in (0, 3):
        torch.testing.assert_close(plain[i].weight, ridged[i].weight, atol=1e-6, rtol=1e-4)


def test_means_are_kept_through_bias_or_normalisation() -> None:
    original, images = classifier(), batches(32)
    model = copy.deepcopy(original)
    replace_filters_(
        model, [KeySet.random(3, size=k) for k in (3, 5)], images=images, recalibrate=False
    )
    with torch.no_grad():
        for end in (2, 5):  # behind either normalisation, at the places that were looked at
            new, old = (m[:end](images).mean((0, 2, 3)) for m in (model, original))
            torch.testing.assert_close(new, old, atol=0.03, rtol=0)
    assert not torch.equal(model[3].bias, original[3].bias)
    assert not torch.equal(model[1].running_mean, original[1].running_mean)


def test_recalibration_moves_statistics_by_what_surgery_moved() -> None:
    original, images = classifier(), batches(64, seed=3)
    same = copy.deepcopy(original)
    assert recalibrate_batchnorm_(same, original, images, batch_size=20) == 2
    for name, norm in batch_norms(same).items():
        twin = batch_norms(original)[name]
        torch.testing.assert_close(norm.running_mean, twin.running_mean)
        torch.testing.assert_close(norm.running_var, twin.running_var)
    scaled = copy.deepcopy(original)
    with torch.no_grad():
        scaled[0].weight.mul_(-2.0)
        scaled[3].weight.mul_(0.1)
        scaled[3].bias.add_(5.0)
    recalibrate_batchnorm_(scaled, original, images, batch_size=20)
    torch.testing.assert_close(
        scaled[1].running_var, 4 * original[1].running_var, rtol=1e-4, atol=0
    )
    with torch.no_grad():
        inputs = scaled[:3](images)
    assert torch.isfinite(inputs).all()
    modes = [m.training for m in scaled.modules()]
    recalibrate_batchnorm_(scaled.train(), original, images)
    assert all(m.training for m in scaled.modules()) and not any(modes)
    assert recalibrate_batchnorm_(nn.Flatten(), nn.Flatten(), images) == 0


def test_consumers_are_found_through_views_and_branches() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 4, 3, groups=4)
            self.norm = nn.BatchNorm2d(4)
            self.b = nn.Conv2d(4, 4, 3, groups=4)
            self.c = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.a(x))
            y = self.b(x)
            assert y.shape[1] == 4
            return self.c(y).flatten(1).sum(1) + y.mean((1, 2, 3))

    net = Net().eval()
    found = consumers(steps(net, torch.ones(1, 4, 9, 9)))
    assert found[net.a] == [net.norm]
    assert found[net.b] == [net.c, None]


def test_sensitivity_tries_one_layer_at_a_time() -> None:
    model, images = classifier(), batches(40)
    before = copy.deepcopy(model.state_dict())
    keys = [KeySet.random(2, size=k) for k in (3, 5)]
    table = layer_sensitivity(model, keys, images)
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    assert table["layer"].tolist() == ["0", "3"]
    one = copy.deepcopy(model)
    replace_filters_(one, keys, layers=["3"])
    with torch.no_grad():
        same = (one(images).argmax(1) == model(images).argmax(1)).float().mean()
    assert table["top1"][1] == pytest.approx(float(same))
