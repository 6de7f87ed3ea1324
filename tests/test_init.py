from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from keyfilters import init
from keyfilters.errors import KeyFiltersError

KEYS = torch.randn(3, 5, 5, generator=Generator().manual_seed(0), dtype=torch.float64)
FILLERS: dict[str, Callable[..., Tensor]] = {
    "center_surround_": init.center_surround_,
    "covariance_": init.covariance_,
    "impulse_": init.impulse_,
    "key_": lambda weight, **options: init.key_(weight, KEYS, **options),
    "trunc_normal_": init.trunc_normal_,
}
every_filler = pytest.mark.parametrize("fill", FILLERS.values(), ids=FILLERS)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def rms(filters: Tensor) -> Tensor:
    return filters.double().flatten(1).square().mean(1).sqrt()


# -- difference of Gaussians


def parts(size: int, gamma: float) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Taps of centre and surround, by the rule of the paper, one by one."""
    middle, radius = (size - 1) / 2, gamma * (size + 1) / 2
    near = [p for p in product(range(size), repeat=2) if math.dist(p, (middle,) * 2) < radius]
    return near, [p for p in product(range(size), repeat=2) if p not in near]


@pytest.mark.parametrize("size", [3, 4, 5, 6, 7, 9, 11, 31])
@pytest.mark.parametrize("gamma", [0.05, 0.29, 1 / 3, 0.45, 0.5, 2 / 3, 0.7, 0.9, 0.999])
def test_parts_of_the_kernel_sum_to_plus_and_minus_one(size: int, gamma: float) -> None:
    center, surround = parts(size, gamma)
    if not center or not surround:
        with pytest.raises(KeyFiltersError, match="gamma between"):
            init.difference_of_gaussians(size, gamma)
        return
    w = init.difference_of_gaussians(size, gamma)
    assert w.shape == (size, size) and w.dtype == torch.float64
    assert sum(w[p].item() for p in center) == pytest.approx(1, abs=1e-10)
    assert sum(w[p].item() for p in surround) == pytest.approx(-1, abs=1e-10)
    for same in (w.T, w.flip(0), w.flip(1)):
        torch.testing.assert_close(w, same, rtol=0, atol=1e-12)
    assert torch.equal(init.difference_of_gaussians(size, gamma, "off"), -w)


def test_against_the_formula_with_published_constants() -> None:
    # gamma = 1/3: R = 1.333, sigma = 1.799, centre tap .605; gamma = 2/3: sigma = 2.341, tap .167.
    for gamma, sigma, tap in ((1 / 3, 1.799, 0.605), (2 / 3, 2.341, 0.167)):
        w = init.difference_of_gaussians(7, gamma).numpy()
        assert w[3, 3] == pytest.approx(tap, abs=5e-4)
        y, x = np.mgrid[-3:4, -3:4]
        squared = x**2 + y**2
        excite = np.exp(-squared / (2 * gamma**2 * sigma**2))
        inhibit = np.exp(-squared / (2 * sigma**2))
        basis = np.stack([excite.ravel(), inhibit.ravel()], axis=1)
        factors, *_ = np.linalg.lstsq(basis, w.ravel(), rcond=None)
        assert np.abs(basis @ factors - w.ravel()).max() < 1e-3  # sigma is given to 4 digits
        assert factors[0] > 0 > factors[1]


def test_ties_belong_to_the_surround() -> None:
    # k = 7, gamma = .5: R = 2 and four taps lie at r = 2. A rounding of gamma must not move them.
    reference = init.difference_of_gaussians(7, 0.5)
    assert reference[2:5, 2:5].sum().item() == pytest.approx(1, abs=1e-12)
    for gamma in (math.nextafter(0.5, 0), math.nextafter(0.5, 1), 0.5 + 1e-13):
        torch.testing.assert_close(
            init.difference_of_gaussians(7, gamma), reference, rtol=0, atol=1e-11
        )
    corners = init.difference_of_gaussians(3, math.sqrt(0.5))  # R is the distance of the corners
    assert corners[::2, ::2].sum().item() == pytest.approx(-1, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0.5), "size is 1"),
        ((2, 0.5), "size is 2"),
        ((3, 0.8), "gamma is 0.8.* between 0 and 0.7071"),
        ((4, 0.2), "gamma is 0.2.* between 0.2828 and 0.8485"),
        ((7, 0.0), "gamma is 0; "),
        ((7, 1.0), "gamma is 1; .* between 0 and 1"),
        ((7, -0.5), "gamma is -0.5"),
        ((7, math.nan), "gamma is nan"),
        ((7, 0.5, "middle"), "center is 'middle'"),
    ],
)
def test_kernels_that_do_not_exist(arguments: tuple[int, float], message: str) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        init.difference_of_gaussians(*arguments)


# -- centre-surround


@pytest.mark.parametrize("size", [3, 4, 5, 7, 13])
@pytest.mark.parametrize(
    ("share", "on", "lit", "dark"),
    [(1.0, 0.5, 10, 10), (0.5, 0.5, 5, 5), (0.25, 0.5, 3, 2), (0.6, 0.0, 0, 12), (0.0, 0.5, 0, 0)],
)
def test_exact_counts(size: int, share: float, on: float, lit: int, dark: int) -> None:
    weight = torch.full((20, 1, size, size), 9.0, dtype=torch.float64)
    assert init.center_surround_(weight, share=share, on=on, generator=seeded()) is weight
    gammas = (1 / 3, 1 / 2, 2 / 3)
    named = [init.difference_of_gaussians(size, g, c) for c in ("on", "off") for g in gammas]
    named.append(torch.full((size, size), 9.0, dtype=torch.float64))
    found = Counter(
        next(i for i, known in enumerate(named) if torch.equal(known, f)) for f in weight[:, 0]
    )
    assert [found[i] for i in range(7)] == [
        *(len(range(start, lit, 3)) for start in range(3)),
        *(len(range(start, dark, 3)) for start in range(3)),
        20 - lit - dark,
    ]


def test_channels_are_shuffled_and_the_others_keep_their_bits() -> None:
    before = torch.randn(40, 1, 7, 7, generator=seeded(1))
    places = []
    for seed in range(2):
        weight = init.center_surround_(before.clone(), share=0.5, generator=seeded(seed))
        places.append((weight != before).flatten(1).any(1))
        assert places[-1].sum() == 20
        assert torch.equal(weight[~places[-1]], before[~places[-1]])
    assert not torch.equal(*places)
    assert not torch.equal(places[0], torch.arange(40) < 20)


def test_rescaling_of_every_filter() -> None:
    weight = init.center_surround_(torch.empty(12, 7, 7, dtype=torch.float64), std=0.02)
    torch.testing.assert_close(rms(weight), torch.full((12,), 0.02).double())
    torch.testing.assert_close(weight.std((1, 2), correction=0), torch.full((12,), 0.02).double())
    init.key_(weight, torch.ones(2, 7, 7), std=0.5)
    torch.testing.assert_close(rms(weight), torch.full((12,), 0.5).double())
    raw = rms(init.center_surround_(torch.empty(12, 1, 7, 7)))
    assert 0.05 < raw.min() < 0.06 and 0.09 < raw.max() < 0.1


# -- covariance


def loop_covariance(height: int, width: int, variance: float) -> np.ndarray:
    """The closed form, tap by tap: moving block, less half the static one, masked, symmetric."""
    taps = list(product(range(height), range(width)))
    middle = ((height - 1) / 2, (width - 1) / 2)
    static = [math.exp(-(math.dist(p, middle) ** 2) / (2 * variance)) for p in taps]
    c = np.empty((len(taps), len(taps)))
    for (i, p), (j, q) in product(enumerate(taps), repeat=2):
        dy = min(abs(p[0] - q[0] + height * n) for n in (-1, 0, 1))
        dx = min(abs(p[1] - q[1] + width * n) for n in (-1, 0, 1))
        moving = math.exp(-(dy**2 + dx**2) / (2 * variance))
        c[i, j] = static[i] * (moving - static[j] / 2)
    return (c + c.T) / 2


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (4, 4), (1, 7), (3, 6), (7, 7)])
@pytest.mark.parametrize("variance", [1e-3, 0.15, 0.4, 0.9, 2.0])
def test_covariance_against_a_loop(size: tuple[int, int], variance: float) -> None:
    oracle = loop_covariance(*size, variance)
    values, vectors = np.linalg.eigh(oracle)
    projected = (vectors * values.clip(min=0)) @ vectors.T
    c = init.filter_covariance(size, variance).numpy()
    assert np.abs(c - projected).max() < 1e-12
    assert np.abs(c - c.T).max() < 1e-14 and np.linalg.eigvalsh(c).min() > -1e-12
    if variance < 1 and size[0] % 2 and size[1] % 2:
        assert -values.clip(max=0).sum() < 0.03 * np.trace(oracle)
    middle = np.diag(oracle).reshape(size)[size[0] // 2, size[1] // 2]
    if size[0] % 2 and size[1] % 2:
        assert middle == pytest.approx(0.5)


@pytest.mark.parametrize("shape", [(5, 5), (2, 7)])
def test_sample_covariance(shape: tuple[int, int]) -> None:
    n, taps = 100_000, shape[0] * shape[1]
    weight = torch.empty(n, 1, *shape, dtype=torch.float64)
    draws = init.covariance_(
        weight, depth=0.5, schedule=(0.3, 0.4, 0.8), generator=seeded()
    ).reshape(n, taps)
    wanted = init.filter_covariance(shape, 0.3 + 0.4 * 0.5 + 0.8 * 0.5**2 / 2)
    # Var of a sample covariance of Gaussians: (c_ii c_jj + c_ij²) / n. 5.5 of these in each entry.
    spread = ((wanted.diag()[:, None] * wanted.diag() + wanted**2) / n).sqrt()
    assert bool(((draws.T @ draws / n - wanted).abs() < 5.5 * spread + 1e-12).all())
    assert bool((draws.mean(0).abs() < 5.5 * (wanted.diag() / n).sqrt() + 1e-12).all())
    scaled = init.covariance_(
        weight.clone(), depth=0.5, schedule=(0.3, 0.4, 0.8), std=0.02, generator=seeded()
    ).reshape(n, taps)
    factor = 0.02 / wanted.diag().mean().sqrt()
    torch.testing.assert_close(scaled, draws * factor, rtol=1e-9, atol=1e-12)
    assert scaled.square().mean().sqrt().item() == pytest.approx(0.02, rel=0.01)


def test_filters_grow_more_diffuse_with_depth() -> None:
    outer = []
    for depth in (0.0, 0.5, 1.0):
        w = init.covariance_(torch.empty(500, 1, 7, 7), depth=depth, generator=seeded())
        outer.append(1 - (w[..., 2:5, 2:5].square().sum() / w.square().sum()).item())
    assert outer[0] < outer[1] < outer[2]


# -- impulses, keys and the normal distribution


def test_impulses_have_one_tap_anywhere() -> None:
    weight = init.impulse_(torch.empty(6000, 1, 2, 3, dtype=torch.float64), 0.1, seeded())
    flat = weight.flatten(1)
    assert torch.equal((flat == 0.1).sum(1), torch.ones(6000, dtype=torch.long))
    assert torch.equal(flat.count_nonzero(1), torch.ones(6000, dtype=torch.long))
    counts = (flat != 0).sum(0)
    assert bool(((counts - 1000).abs() < 5 * math.sqrt(6000 * 5 / 36)).all())


def test_keys_are_drawn_with_their_probabilities_and_signs() -> None:
    read_only = KEYS.numpy().copy()
    read_only.flags.writeable = False
    n = 4000
    weight = init.key_(
        torch.empty(n, 5, 5, dtype=torch.float64),
        read_only,
        probabilities=[3, 0, 1],
        generator=seeded(),
    )
    named = torch.cat([KEYS, -KEYS])
    counts = (weight[:, None] == named).flatten(2).all(2).sum(0)
    assert counts.sum() == n and counts[1] == counts[4] == 0
    wanted = torch.tensor([3, 0, 1, 3, 0, 1]) * n / 8
    assert bool(((counts - wanted).abs() <= 5 * (wanted * (1 - wanted / n)).sqrt()).all())
    init.key_(weight, KEYS.clone().requires_grad_(), signs=False)
    counts = (weight[:, None] == named).flatten(2).all(2).sum(0)
    assert bool((counts[:3] > n / 3 - 5 * math.sqrt(n * 2 / 9)).all()) and counts[3:].sum() == 0


def test_truncated_normal() -> None:
    weight = init.trunc_normal_(torch.empty(3000, 1, 7, 7), generator=seeded())
    assert weight.std().item() == pytest.approx(0.02, rel=0.01)
    wide = init.trunc_normal_(torch.empty(300, 1, 7, 7), std=2.0, generator=seeded())
    assert wide.abs().max() <= 2 and wide.abs().max() > 1.9


# -- what all have in common


@every_filler
def test_same_seed_same_bits(fill: Callable[..., Tensor]) -> None:
    one, two, other = (fill(torch.empty(64, 1, 5, 5), generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)
    torch.manual_seed(0)
    assert torch.equal(fill(torch.empty(64, 1, 5, 5)), one)
    assert torch.equal(fill(torch.empty(64, 5, 5), generator=seeded()), one[:, 0])


@every_filler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_only_rounds(fill: Callable[..., Tensor], dtype: torch.dtype) -> None:
    exact = fill(torch.empty(16, 1, 5, 5, dtype=torch.float64), generator=seeded())
    weight = fill(torch.empty(16, 1, 5, 5, dtype=dtype), generator=seeded())
    assert weight.dtype == dtype and torch.equal(weight, exact.to(dtype))


@every_filler
def test_memory_format_default_device_and_meta(fill: Callable[..., Tensor]) -> None:
    plain = fill(torch.empty(16, 1, 5, 5), generator=seeded())
    weight = torch.empty(1, 16, 5, 5).contiguous(memory_format=torch.channels_last)
    weight = weight.transpose(0, 1)  # strides as of a channels-last layout, not contiguous
    strides = weight.stride()
    assert torch.equal(fill(weight, generator=seeded()), plain) and weight.stride() == strides
    last = torch.empty(16, 1, 5, 5).to(memory_format=torch.channels_last)
    assert torch.equal(fill(last, generator=seeded()), plain)
    with torch.device("meta"):  # as under a default device that is not the weight's
        assert torch.equal(fill(last.zero_(), generator=seeded()), plain)
    assert fill(torch.empty(16, 1, 5, 5, device="meta")).is_meta


@every_filler
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(fill: Callable[..., Tensor]) -> None:
    plain = fill(torch.empty(16, 1, 5, 5), generator=seeded())
    weight = torch.empty(16, 1, 5, 5, device="cuda")
    assert torch.equal(fill(weight, generator=seeded()).cpu(), plain)
    draws = [fill(weight, generator=Generator("cuda").manual_seed(0)).clone() for _ in range(2)]
    assert torch.equal(*draws) and weight.is_cuda


@every_filler
def test_parameters_stay_leaves(fill: Callable[..., Tensor]) -> None:
    conv = nn.Conv2d(16, 16, 5, padding=2, groups=16)
    weight = conv.weight
    assert fill(weight, generator=seeded()) is weight
    assert weight.is_leaf and weight.requires_grad and weight.grad is None
    assert weight.grad_fn is None and torch.is_grad_enabled()
    conv(torch.randn(1, 16, 8, 8)).sum().backward()
    assert weight.grad is not None


@every_filler
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.empty(8, 4, 5, 5), r"shape \(8, 4, 5, 5\).* groups == in_channels"),
        (torch.empty(8, 25), r"shape \(8, 25\)"),
        (torch.empty(0, 1, 5, 5), r"shape \(0, 1, 5, 5\)"),
        (torch.zeros(8, 1, 5, 5, dtype=torch.int32), "torch.int32"),
    ],
)
def test_weights_that_are_not_depthwise(
    fill: Callable[..., Tensor], weight: Tensor, message: str
) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        fill(weight)


W5 = torch.zeros(8, 1, 5, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: init.center_surround_(torch.zeros(8, 1, 2, 7)), "2×7 filters have no centre"),
        (lambda: init.center_surround_(torch.zeros(8, 1, 1, 1)), "1×1 filters have no centre"),
        (lambda: init.center_surround_(W5, gammas=()), r"gammas is empty; type gammas=\(0.5,\)"),
        (lambda: init.center_surround_(W5, gammas=(0.5, 0.99)), "gamma is 0.99"),
        (lambda: init.center_surround_(W5, share=1.5), "share 1.5"),
        (lambda: init.center_surround_(W5, on=-0.1), "on -0.1"),
        (lambda: init.center_surround_(W5, std=0.0), "std is 0.0"),
        (lambda: init.covariance_(W5, depth=2.0), "depth is 2.0"),
        (lambda: init.covariance_(W5, schedule=(0.0, 0.0, 0.0)), "variance 0.0"),
        (lambda: init.covariance_(W5, std=math.nan), "std is nan"),
        (lambda: init.filter_covariance(0, 1.0), "at least 1 tap"),
        (lambda: init.filter_covariance(3, math.inf), "variance inf"),
        (lambda: init.trunc_normal_(W5, std=-1.0), "std is -1.0"),
        (lambda: init.key_(W5, torch.ones(2, 3, 3)), r"\(2, 3, 3\); the weight needs \(K, 5, 5\)"),
        (lambda: init.key_(W5, torch.ones(0, 5, 5)), r"\(0, 5, 5\); the weight needs"),
        (lambda: init.key_(W5, torch.zeros(2, 5, 5)), "0 everywhere or not finite"),
        (lambda: init.key_(W5, KEYS, std=math.inf), "std is inf"),
        (lambda: init.key_(W5, KEYS, probabilities=[1.0, 2.0]), "must be 3 numbers"),
        (lambda: init.key_(W5, KEYS, probabilities=[1.0, 2.0, -1.0]), "must be 3 numbers"),
        (lambda: init.key_(W5, KEYS, probabilities=[0.0, 0.0, 0.0]), "not all 0"),
        (lambda: init.key_(W5, KEYS, probabilities=[1.0, math.nan, 1.0]), "must be 3 numbers"),
    ],
)
def test_bad_arguments(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(KeyFiltersError, match=message):
        call()
    assert bool((W5 == 0).all())  # refused before anything is written


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_eight_bits(dtype: torch.dtype) -> None:
    weight = torch.zeros(8, 1, 5, 5).to(dtype)
    assert init.center_surround_(weight, std=0.1) is weight
    wide = weight.float()
    assert (wide[:, 0, 2, 2] != 0).all() and (wide[:, 0, 2, 2] > 0).sum() == 4


def test_the_covariance_root_does_not_depend_on_the_number_of_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(0)
            found.append(init.covariance_(torch.empty(64, 1, 7, 7), depth=0.0, generator=generator))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
