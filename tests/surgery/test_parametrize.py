"""Filters kept on the keys: what is drawn, what is learned, and what survives around it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import distributed, nn
from torch.nn.utils import parametrize

from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.receptive_fields.operators import OPERATORS, operator
from keyfilters.receptive_fields.scaled_keys import ScaledKeys
from keyfilters.surgery.key_weights import FixedKeys, KeyWeight
from keyfilters.surgery.parametrize import bake_filters_, parametrize_filters_

KEYS = KeySet.published("lindeberg2026-B")
ALL = ("amplitude", "bias", "sigma")
LEARN = [(), ("bias",), ("amplitude", "bias"), ALL]


class Tiny(nn.Module):
    """Two depthwise layers of 7×7, the second with two filters a channel and no bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 1)
        self.first = nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.second = nn.Conv2d(16, 32, 7, padding=3, groups=16, bias=False)
        self.head = nn.Linear(32, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(self.stem(images)).relu()).mean((2, 3)))


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, steps: int = 2) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        model(images()).square().sum().backward()
        optimiser.step()


def residuals(weight: torch.Tensor, keys: KeySet = KEYS) -> np.ndarray:
    return keys.assign(weight.detach().double().numpy()[:, 0]).residual


def drawing(conv: nn.Module) -> KeyWeight:
    return conv.parametrizations.weight[0]


@pytest.mark.parametrize("learn", LEARN)
def test_starts_at_the_assignment_and_reports_it(learn: tuple[str, ...]) -> None:
    model, plain = Tiny(), Tiny()
    report = parametrize_filters_(model, KEYS, learn)
    assert report["layer"].tolist() == ["first", "second"]
    assert report["filters"].tolist() == [16, 32]
    numbers = len(learn) + ("sigma" in learn)
    assert report["parameters"].tolist() == [16 * numbers, 32 * numbers]
    for name in ("first", "second"):
        filters = plain.get_submodule(name).weight.detach().double().numpy()[:, 0]
        index, a, b, _ = KEYS.assign(filters)
        expected = KEYS.reconstruct(index, a, b)
        drawn = model.get_submodule(name).weight.detach().numpy()[:, 0]
        np.testing.assert_allclose(drawn, expected, atol=2e-7)
        row = report[report["layer"] == name].iloc[0]
        centred = filters - filters.mean((1, 2), keepdims=True)
        explained = 1 - ((filters - expected) ** 2).sum() / (centred**2).sum()
        assert row["explained"] == pytest.approx(explained, abs=1e-6)


@pytest.mark.parametrize("learn", LEARN)
def test_no_parameter_is_idle_and_all_names_are_clear(learn: tuple[str, ...]) -> None:
    model = Tiny()
    others = dict(model.named_parameters()).keys() - {"first.weight", "second.weight"}
    parametrize_filters_(model, KEYS, learn)
    names = {"amplitude": ["amplitude"], "bias": ["bias"]}
    names["sigma"] = ["keys.raw_sigma"]
    expected = {
        f"{layer}.parametrizations.weight.0.{name}"
        for layer in ("first", "second")
        for what in learn
        for name in names[what]
    }
    assert dict(model.named_parameters()).keys() == others | expected
    model(images()).square().sum().backward()
    for name in expected:
        assert model.get_parameter(name).grad.abs().sum() > 0, name


@pytest.mark.parametrize("learn", LEARN)
def test_training_moves_what_is_learned_and_nothing_else(learn: tuple[str, ...]) -> None:
    model = Tiny()
    parametrize_filters_(model, KEYS, learn)
    part = drawing(model.second)
    before = {k: v.clone() for k, v in part.state_dict().items()}
    train(model)
    moved = {k for k, v in part.state_dict().items() if not torch.equal(v, before[k])}
    expected = {name for name in learn if name != "sigma"}
    if "sigma" in learn:
        expected |= {"keys.raw_sigma"}
    assert moved == expected
    if "sigma" not in learn:  # still on the keys
        assert residuals(model.second.weight).max() < 1e-6


def test_random_assignment_keeps_the_layers_scale_and_repeats() -> None:
    models = [Tiny() for _ in range(3)]
    scale = float(models[0].first.weight.detach().square().mean().sqrt())
    for model, seed in zip(models, (3, 3, 4), strict=True):
        report = parametrize_filters_(model, KEYS, assignment="random", seed=seed)
        assert report["explained"].max() < 0.2
    one, same, other = (model.first.weight.detach() for model in models)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.square().mean().sqrt()) == pytest.approx(scale, rel=1e-5)
    part = drawing(models[0].first)
    assert (part.bias == 0).all()
    assert set(part.amplitude.sign().tolist()) == {-1.0, 1.0}
    assert len(part.keys.index.unique()) > 3


@pytest.mark.parametrize("size", [3, 5, 7, 9])
def test_scaled_keys_draw_what_the_operators_draw(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn, models = [], []
    for name, form in OPERATORS.items():
        sigma = 0.3 + 4.6 * torch.rand(2, 1, generator=generator).double()
        sigma_x, sigma_y = sigma[0], sigma[0] if form.isotropic else sigma[1]
        alpha = torch.full_like(sigma_x, 0.5) if form.sharpens else None
        drawn.append(form.render(sigma_x, sigma_y, alpha, size=size)[0])
        models.append((name, sigma_x.item(), sigma_y.item(), 0.5 if form.sharpens else np.nan))
    filters = torch.stack(drawn)
    filters = filters - filters.mean((1, 2), keepdim=True)
    filters = filters / filters.flatten(1).norm(dim=1)[:, None, None]
    table = pd.DataFrame(models, columns=["operator", "sigma_x", "sigma_y", "alpha"])
    index = torch.arange(len(models))
    for order in (index, index.flip(0)):
        keys = ScaledKeys(table, filters.numpy(), order)
        torch.testing.assert_close(keys(), filters[order], atol=1e-10, rtol=0)
        scales = torch.tensor(table[["sigma_x", "sigma_y"]].to_numpy())[order]
        torch.testing.assert_close(keys.sigma().T, scales)
    with pytest.raises(KeyFiltersError, match="do not draw"):
        ScaledKeys(table, filters.roll(1, 0).numpy(), index)


@pytest.mark.parametrize("unit_norm", [False, True])
def test_gradients(unit_norm: bool) -> None:
    index = np.array([0, 3, 4, 6, 7, 6])
    keys = ScaledKeys(KEYS.models, KEYS.filters, index)
    a, b = torch.linspace(-1, 1.5, 6).double(), torch.linspace(0.1, -0.2, 6).double()
    part = KeyWeight(keys, nn.Parameter(a), nn.Parameter(b), unit_norm=unit_norm)
    names = [name for name, _ in part.named_parameters()]

    def draw(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(part, dict(zip(names, values, strict=True)), ())

    assert torch.autograd.gradcheck(draw, tuple(part.parameters()))


def test_unit_norm_divides_the_whole_kernel() -> None:
    model, plain = Tiny(), Tiny()
    parametrize_filters_(plain, KEYS, ALL)
    parametrize_filters_(model, KEYS, ALL, unit_norm=True)
    expected = nn.functional.normalize(plain.first.weight.flatten(1)).view_as(plain.first.weight)
    torch.testing.assert_close(model.first.weight, expected)
    train(model)
    norms = model.first.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    part = KeyWeight(FixedKeys(KEYS.filters, [0]), *torch.zeros(2, 1), unit_norm=True)
    assert (part() == 0).all()  # and no NaN


@pytest.mark.parametrize("raw", [-80.0, 50.0])
def test_extreme_scales_stay_finite(raw: float) -> None:
    index = torch.arange(8)
    keys = ScaledKeys(KEYS.models, KEYS.filters, index).float()
    with torch.no_grad():
        keys.raw_sigma.fill_(raw)
    drawn = keys()
    drawn.square().sum().backward()
    torch.testing.assert_close(drawn.flatten(1).norm(dim=1), torch.ones(8), atol=1e-4, rtol=0)
    assert keys.raw_sigma.grad.isfinite().all()
    assert keys.sigma().max() <= 5


@pytest.mark.parametrize("learn", LEARN)
def test_baking_restores_the_plain_model(learn: tuple[str, ...]) -> None:
    model, plain = Tiny(), Tiny()
    parametrize_filters_(model, KEYS, learn)
    train(model)
    weights = [model.first.weight.detach().clone(), model.second.weight.detach().clone()]
    output = model(images()).detach()
    assert bake_filters_(model) == ["first", "second"]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch.equal(model.first.weight, weights[0])
    assert torch.equal(model.second.weight, weights[1])
    assert torch.equal(model(images()), output)
    assert type(model.first) is nn.Conv2d
    assert model.first.weight.requires_grad
    assert model.first.weight.is_leaf
    plain.load_state_dict(model.state_dict())
    train(model)
    assert not torch.equal(model.first.weight, weights[0])
    with pytest.raises(KeyFiltersError, match="parametrize_filters_"):
        bake_filters_(model)
    parametrize_filters_(model, KEYS, learn)  # and again


def test_state_dict_goes_into_a_freshly_parametrised_model() -> None:
    model, other = Tiny(), Tiny()
    nn.init.normal_(other.first.weight, std=0.1)  # other keys
    parametrize_filters_(model, KEYS, ALL)
    train(model)
    parametrize_filters_(other, KEYS, ALL)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images()), model(images()))


def test_a_copy_draws_with_its_own_parameters() -> None:
    model = Tiny()
    parametrize_filters_(model, KEYS, ALL)
    average = ModelEmaV3(model, decay=0.5)
    twin = copy.deepcopy(model)
    before = model.first.weight.detach().clone()
    train(model)
    assert torch.equal(twin.first.weight, before)
    average.update(model)
    now, mean = drawing(model.first), drawing(average.module.first)
    expected = (drawing(twin.first).amplitude + now.amplitude) / 2
    torch.testing.assert_close(mean.amplitude, expected)
    bake_filters_(model)
    assert parametrize.is_parametrized(average.module.first)
    index, sigma = mean.keys.index, mean.keys.sigma()
    for c in range(3):
        form = operator(KEYS.models["operator"][int(index[c])])
        alpha = torch.tensor([KEYS.models["alpha"][int(index[c])]]) if form.sharpens else None
        key = form.render(*sigma[:, c, None].detach(), alpha, size=7)[0]
        key = (key - key.mean()) / (key - key.mean()).norm()
        expected = mean.amplitude[c] * key + mean.bias[c]
        torch.testing.assert_close(average.module.first.weight[c, 0], expected)


# torch 2.6 makes an instance of an autograd function while it compiles; later ones warn of 3.13.0.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")
@pytest.mark.parametrize("learn", [("bias",), ALL])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_in_one_piece(learn: tuple[str, ...], backend: str) -> None:
    model = Tiny()
    parametrize_filters_(model, KEYS, learn)
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    compiled(images()).sum().backward()
    torch.testing.assert_close(compiled(images()), model(images()))
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(images()).sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)


@pytest.mark.parametrize("learn", [("bias",), ALL])
def test_functional_transforms(learn: tuple[str, ...]) -> None:
    model = Tiny()
    parametrize_filters_(model, KEYS, learn)
    parameters, given = dict(model.named_parameters()), images()

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, (given,)).sum()

    found = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    torch.testing.assert_close(found, {name: x.grad for name, x in parameters.items()})
    both = {name: torch.stack([x, 2 * x]).detach() for name, x in parameters.items()}
    one, two = torch.func.vmap(loss)(both)
    torch.testing.assert_close(one, loss(parameters))
    torch.testing.assert_close(two, loss({name: 2 * x for name, x in parameters.items()}))


def test_autocast_draws_in_full_precision() -> None:
    model = Tiny()
    parametrize_filters_(model, KEYS, ALL)
    expected = model.first.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.first.weight, expected)
        loss = model(images()).float().square().sum()
    loss.backward()
    assert drawing(model.first).keys.raw_sigma.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("learn", [("bias",), ALL])
def test_other_precisions(dtype: torch.dtype, learn: tuple[str, ...]) -> None:
    before, after, plain = Tiny().to(dtype), Tiny(), Tiny()
    parametrize_filters_(plain, KEYS, learn)
    parametrize_filters_(before, KEYS, learn)
    parametrize_filters_(after, KEYS, learn)
    for model in (before, after.to(dtype)):
        weight = model.first.weight
        assert weight.dtype == dtype
        tolerance = max(8 * torch.finfo(dtype).eps, 1e-6) * weight.detach().abs().max().item()
        expected = plain.first.weight.to(dtype)
        torch.testing.assert_close(weight, expected, atol=tolerance, rtol=0)
        assert model(images().to(dtype)).isfinite().all()
    bake_filters_(after)
    assert after.first.weight.dtype == dtype


@pytest.mark.parametrize("when", ["before", "after"])
def test_channels_last(when: str) -> None:
    plain, model = Tiny().to(memory_format=torch.channels_last), Tiny()
    expected = Tiny()
    parametrize_filters_(expected, KEYS, ALL)
    if when == "before":
        model = model.to(memory_format=torch.channels_last)
    parametrize_filters_(model, KEYS, ALL)
    if when == "after":
        model = model.to(memory_format=torch.channels_last)
    assert model.first.weight.stride() == plain.first.weight.stride()
    torch.testing.assert_close(model(images()), expected(images()))
    features = model.first(model.stem(images().to(memory_format=torch.channels_last)))
    assert features.is_contiguous(memory_format=torch.channels_last)
    bake_filters_(model)
    assert model.first.weight.stride() == plain.first.weight.stride()


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("learn", LEARN)
def test_distributed(learn: tuple[str, ...]) -> None:
    model, alone = Tiny(), Tiny()
    parametrize_filters_(model, KEYS, learn)
    parametrize_filters_(alone, KEYS, learn)
    train(nn.parallel.DistributedDataParallel(model))
    train(alone)
    torch.testing.assert_close(model.state_dict(), alone.state_dict())


def test_convnext() -> None:
    model = timm.create_model("convnextv2_atto", pretrained=False, num_classes=10)
    names = list(model.state_dict())
    report = parametrize_filters_(model, KEYS, ALL)
    assert len(report) == 12
    model(torch.zeros(1, 3, 64, 64)).sum().backward()
    assert len(bake_filters_(model)) == 12
    assert list(model.state_dict()) == names


def test_layers_of_another_size_are_left_alone(network: nn.Module) -> None:
    report = parametrize_filters_(network, KEYS).set_index("layer")
    assert report.index.tolist() == ["1", "3", "4", "5"]
    left = report["left"].tolist()
    assert all("7×7" in why for why in left[:3]) and left[3] == ""
    assert report["parameters"].tolist() == [0, 0, 0, 24]
    assert report["size"].tolist() == ["5×5", "3×3", "1×7", "7×7"]
    small = KeySet.published("lindeberg2026-B", size=5)
    report = parametrize_filters_(network, small, ALL).set_index("layer")
    assert report["parameters"].tolist() == [32, 0, 0, 0]
    assert bake_filters_(network) == ["1", "5"]


def test_only_the_layers_asked_for() -> None:
    model = Tiny()
    report = parametrize_filters_(model, KEYS, layers=["sec*"])
    assert report["left"].tolist() == ["not among the layers asked for", ""]
    report = parametrize_filters_(model, KEYS, layers="first")
    assert report["left"].iloc[1].startswith("its weight is parametrised")


def test_contradictions_and_mistakes(network: nn.Module) -> None:
    learned = KeySet.from_filters(np.random.default_rng(0).normal(size=(4, 7, 7)))
    with pytest.raises(KeyFiltersError, match=r"no models.*KeySet\.published.*size=7"):
        parametrize_filters_(Tiny(), learned, ("sigma",))
    with pytest.raises(KeyFiltersError, match=r"'sigmas' cannot.*amplitude, bias, sigma"):
        parametrize_filters_(Tiny(), KEYS, ("sigmas",))
    with pytest.raises(KeyFiltersError, match="'trained' or 'random'"):
        parametrize_filters_(Tiny(), KEYS, assignment="best")  # type: ignore[arg-type]
    with pytest.raises(KeyFiltersError, match=r"are 9×9, but .* 1×7, 3×3, 5×5, 7×7.*size=3"):
        parametrize_filters_(network, KeySet.published("lindeberg2026-B", size=9))
    with pytest.raises(KeyFiltersError, match="got OrderedDict"):
        parametrize_filters_(Tiny().state_dict(), KEYS)  # type: ignore[arg-type]
    model = Tiny()
    model.second.weight.requires_grad_(False)
    with pytest.raises(KeyFiltersError, match="second is frozen, but bias"):
        parametrize_filters_(model, KEYS)
    assert not parametrize.is_parametrized(model.first)
    parametrize_filters_(model, KEYS, ())
    with pytest.raises(KeyFiltersError, match=r"first is parametrised already.*bake_filters_"):
        parametrize_filters_(model, KEYS)
    with pytest.raises(KeyFiltersError, match="bake_filters_"):
        model.first.weight = torch.zeros(16, 1, 7, 7)
    tied = nn.Sequential(*[nn.Conv2d(8, 8, 7, groups=8) for _ in range(2)])
    tied[1].weight = tied[0].weight
    with pytest.raises(KeyFiltersError, match="shares its weight"):
        parametrize_filters_(tied, KEYS)
    large = Tiny().half()
    filters = large.first.weight.detach().float()
    large.first.weight.data.copy_(filters * 60000 / filters.abs().max())  # a fits no float16
    with pytest.raises(KeyFiltersError, match=r"cannot hold the amplitude of layer first"):
        parametrize_filters_(large, KEYS)
    assert not parametrize.is_parametrized(large.first)
    broken = Tiny()
    nn.init.constant_(broken.first.weight[3], float("nan"))
    with pytest.raises(KeyFiltersError, match="first holds filters that are not finite"):
        parametrize_filters_(broken, KEYS)
