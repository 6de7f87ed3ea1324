from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from keyfilters.errors import KeyFiltersError
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
        nn.Conv2d(4, 4, 5, groups=4, padding="valid"),
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


def test_without_a_bias_or_a_norm_behind_the_mean_counts_as_well() -> None:
    """Nothing takes up a constant: a and b are those of least squares without one."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, groups=4, padding=1, bias=False)
    model, images = nn.Sequential(conv, nn.ReLU()), torch.rand(6, 4, 8, 8) + 1
    filters = conv.weight.detach().double().numpy()[:, 0]
    keys, named = KeySet.random(3, size=3), list[str]()
    replace_filters_(model, keys, images=images, ridge=0.0, progress=named.append)
    assert named == ["0"]
    for channel, old in enumerate(filters):
        seen = nn.functional.unfold(images[:, channel : channel + 1].double(), 3, padding=1)
        seen = seen.transpose(0, 1).reshape(9, -1).numpy()
        made = []
        for x in keys.filters:
            design = np.stack([x.ravel() @ seen, seen.sum(0)], axis=1)
            (a, b), left, *_ = np.linalg.lstsq(design, old.ravel() @ seen, rcond=None)
            made.append((float(left[0]), a * x + b))
        best = min(made, key=lambda one: one[0])[1]
        np.testing.assert_allclose(conv.weight.detach()[channel, 0], best, rtol=1e-3, atol=1e-5)


class Restless(nn.Module):
    """Calls a layer twice as long as another has its first weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(2))
        self.register_buffer("before", self.first.weight.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x))
        return self.second(x) if torch.equal(self.first.weight, self.before) else x


class Idle(nn.Sequential):
    """A network whose last layer takes no part."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[0](x)


def idle() -> nn.Module:
    return Idle(*(nn.Conv2d(8, 8, 3, groups=8) for _ in range(2)))


def full() -> nn.Module:
    """A layer in half precision whose biases are next to the largest number."""
    conv = nn.Conv2d(8, 8, 3, groups=8, stride=2).half()
    nn.init.constant_(conv.bias, 65504)
    return nn.Sequential(conv)


def striped() -> torch.Tensor:
    """Images of columns with unlike means, which a layer of stride 2 tells apart."""
    images = torch.rand(4, 8, 17, 17)
    images[..., ::2] += 1000
    return images.half()


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        (Restless(), batches(4), "more or less often"),
        (idle(), batches(4), "layer 1 takes no part"),
        (full(), striped(), r"0\.bias would not be finite in torch\.float16"),
        (full(), torch.ones(4, 8), r"expected images .*\(4, 8\)"),
        (full(), torch.ones(0, 8, 9, 9), r"expected images .*\(0, 8, 9, 9\)"),
    ],
)
def test_what_cannot_be_replaced_by_images_stays(
    model: nn.Module, images: torch.Tensor, message: str
) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyFiltersError, match=message):
        replace_filters_(model, KeySet.random(2, size=3), images=images)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


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


class Repeated(nn.Module):
    """One normalisation, called several times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.norm, self.times = nn.BatchNorm2d(8), times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = self.norm(x)
        return x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.BatchNorm2d(8)), "differ in their batch normalisations"),
        (Repeated(3), "more often"),
        (Repeated(1), "differently"),
    ],
)
def test_networks_that_normalise_otherwise_are_not_recalibrated(
    model: nn.Module, message: str
) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyFiltersError, match=message):
        recalibrate_batchnorm_(model, Repeated(2), batches(4))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


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
