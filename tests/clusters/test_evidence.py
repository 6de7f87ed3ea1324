"""Coverage beside its nulls: structure exceeds them all, noise of any smoothness does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import keyfilters as kf
from keyfilters.claims import FILTERS
from keyfilters.clusters.evidence import Evidence, gather_evidence
from keyfilters.clusters.feed_forward import FeedForwardAutoencoder
from keyfilters.clusters.methods import Problem, coverage_methods
from keyfilters.clusters.principal_curve import PrincipalCurve
from keyfilters.clusters.sentences import in_words
from keyfilters.nulls import NULLS, null_units
from keyfilters.scalespace import centred_unit
from tests.clusters.test_patterns import planted_bank


def evidence_of(unit: np.ndarray, size: tuple[int, int], seed: int = 0) -> Evidence:
    data = {FILTERS: unit} | {kind: null_units(unit, size, kind, seed) for kind in NULLS}
    half = np.arange(len(unit)) % 2 == 0
    return gather_evidence(data, size, 0.2, (0, 1), (1, 4, 16), half)


def covariance_filters(size: int, seed: int, count: int = 400) -> np.ndarray:
    """Filters of an untrained layer with covariance initialisation."""
    weight = torch.empty(count, 1, size, size)
    kf.init.covariance_(weight, depth=0.5, generator=torch.Generator().manual_seed(seed))
    return centred_unit(weight[:, 0].numpy())


def test_structure_exceeds_every_null_with_every_method_and_held_out() -> None:
    unit, _ = planted_bank()
    found = evidence_of(unit, (5, 5))
    for claim in found.claims:
        assert claim.value > claim.chance, claim.name
        # Many prototypes cover nearly all of so few filters, those of the null too.
        assert claim.p < 0.05 or claim.chance > 0.95, claim.name
    assert sum(claim.p < 0.001 for claim in found.claims) >= 4
    code = found.claims[0]
    assert code.value > 0.95 and code.held_out > 0.9
    eight = next(claim for claim in found.claims if claim.name == "coverage, k-means 8")
    assert eight.value > eight.chance + 0.1 and eight.held_out > eight.nulls_held_out["covariance"]
    assert code.strictest == "covariance" and code.nulls["white"] < 0.1
    curve = found.rate[(found.rate["method"] == "k-means") & (found.rate["data"] == FILTERS)]
    assert curve["coverage"].is_monotonic_increasing and curve["coverage"].iloc[0] < 0.3


@pytest.mark.parametrize("size", [3, 7])
def test_noise_of_any_smoothness_exceeds_no_null(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PrincipalCurve.__init__.__kwdefaults__, "steps", 100)
    smooth = covariance_filters(size, seed=1, count=300)
    unit = smooth if size == 3 else null_units(smooth, (size, size), "covariance", 5)
    claims = evidence_of(unit, (size, size), seed=2).claims
    # 7 claims at a level of 5 %: more than two of them would happen once in 260 times.
    assert sum(claim.p < 0.05 for claim in claims) <= 2, [(c.name, c.p) for c in claims]
    assert all(abs(claim.value - claim.nulls["covariance"]) < 0.15 for claim in claims)


def test_the_network_of_the_paper_is_a_method_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(FeedForwardAutoencoder.__init__.__kwdefaults__, "epochs", 1)
    plain, more = (coverage_methods(feed_forward=x, device="cpu") for x in (False, True))
    [name] = set(more) - set(plain)
    unit, _ = planted_bank()
    [fitted] = more[name]([Problem(unit[:200], 3)])
    alone = FeedForwardAutoencoder(1, 3).fit(unit[:200])
    np.testing.assert_array_equal(fitted.dissimilarity(unit), alone.dissimilarity(unit))


def test_words_call_chance_negligible_only_if_the_strictest_null_says_so(
    planted_atlas: kf.Atlas,
) -> None:
    claims = planted_atlas.claims_
    words = in_words(claims, "5×5", 0.2)["coverage"]
    assert "next to nothing" not in words and "beyond chance" in words
    assert "Gaussian filters with the same tap covariance, the strictest null" in words
    weak = claims.assign(chance=0.01)
    assert "next to nothing" in in_words(weak, "5×5", 0.2)["coverage"]
    assert "no more is shown" in in_words(weak.assign(q=0.2), "5×5", 0.2)["coverage"]


def test_few_filters_are_covered_by_chance_which_the_nulls_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PrincipalCurve.__init__.__kwdefaults__, "steps", 20)
    noise = centred_unit(np.random.default_rng(5).normal(size=(120, 49)))
    found = {claim.name: claim for claim in evidence_of(noise, (7, 7)).claims}
    claim = found["coverage, k-means 64"]
    assert claim.value > 0.2  # single filters with a prototype of their own
    assert claim.held_out < 0.05 and claim.p > 0.05
