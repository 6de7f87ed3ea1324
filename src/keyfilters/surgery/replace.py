"""Replacing every depthwise filter by its best ``a · key + b``, or by its own idealised model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor, nn

from keyfilters.bank import FilterBank, Layer
from keyfilters.errors import KeyFiltersError
from keyfilters.keyset import KeySet
from keyfilters.nulls import null_bank
from keyfilters.scalespace import why_unusable
from keyfilters.surgery.offers import Keys, Offer, offer_keys
from keyfilters.surgery.outputs import Settings
from keyfilters.surgery.sequential import Chosen, choose_by_outputs_
from keyfilters.surgery.sites import Model, Site, find_sites, refuse_programs

__all__ = ["replace_filters_", "replace_sites_"]


def replace_filters_(
    model: Model,
    keys: Keys,
    *,
    layers: Sequence[str] | None = None,
    images: Tensor | None = None,
    recalibrate: bool = True,
    ridge: float = 0.1,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Replace the depthwise filters of a model, in place, by ``a · key + b``.

    Without images, key, a and b are those nearest to the filter (lindeberg2026modelling,
    babaiee2025quest): ``a = ⟨x, f⟩`` of the key with the largest |a|, b = mean f. With images,
    unlabelled, they are those that change the layer's *output* least, on the inputs that it gets
    from the layers replaced before it; the outputs' means are kept through the bias or the batch
    normalisation that follows, and in the end all batch normalisations are recalibrated.

    Args:
        model: a module, or a state dict, plain or wrapped, whose tensors are overwritten. Images
            need a module.
        keys: a key set; several of different sizes; one for each layer, by name; or
            ``"idealized"``, every filter's own model as found by `keyfilters.match`.
        layers: names or patterns of those to replace; None replaces all that have keys.
        images: ``(n, channels, height, width)``, normalised as the model expects, on its device.
        recalibrate: whether to correct the batch normalisations; needs images.
        ridge: weight of the filter's own error beside that of the output. 0 trusts the images
            alone, and overfits where they are few.
        batch_size: images at a time.
        seed: of the places of the outputs that are looked at.
        progress: called with the name of every layer before it is replaced.

    Returns:
        One row a depthwise layer: layer, size, depth, filters, keys (offered), used (of them),
        explained (share of the filters' variance over the taps), chance (the same share of
        Gaussian filters with the tap covariance of all replaced filters of that size, by the
        nearest of the same keys), cosine (median over the filters, centred), error
        (relative, Frobenius), output_error (with images: share of the output's variance that
        changes, median over channels), and left: why a layer was left alone.

    Raises:
        KeyFiltersError: nothing would be replaced, keys, layers or images do not fit, or a filter
            is not finite. The model is then unchanged.
        NoFiltersError: the model has no depthwise layer.

    >>> net = nn.Sequential(nn.Conv2d(8, 8, 7, groups=8))
    >>> report = replace_filters_(net, KeySet.published("lindeberg2026-B"))
    >>> report[["layer", "size", "filters", "keys"]].values.tolist()
    [['0', '7×7', 8, 8]]
    """
    sites, left = find_sites(model, layers)
    if images is None:
        return replace_sites_(sites, left, keys, progress)
    if not isinstance(model, nn.Module):
        raise KeyFiltersError("images need the model itself, not its state dict")
    refuse_programs(sites)
    settings = Settings(images, ridge=ridge, batch_size=batch_size, seed=seed)

    def choose_(chosen: Sequence[tuple[Site, Offer]]) -> dict[str, Chosen]:
        return choose_by_outputs_(model, chosen, settings, recalibrate, progress)

    return _replace_(sites, left, keys, choose_)


def replace_sites_(
    sites: Sequence[Site],
    left: dict[str, str],
    keys: Keys,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Replace filters by those nearest to them; see `replace_filters_`.

    Args:
        sites: layers, wherever they are kept.
        left: reasons for those that are left alone, by name; added to.
        keys: as for `replace_filters_`.
        progress: likewise.
    """

    def choose_(chosen: Sequence[tuple[Site, Offer]]) -> dict[str, Chosen]:
        found = {site.name: _nearest(site.filters, offer) for site, offer in chosen}
        writes, refused = {}, []
        for site, _ in chosen:
            try:
                writes[site.name] = site.prepare(found[site.name].filters)
            except KeyFiltersError as error:
                refused.append(str(error))
                left[site.name] = str(error).removeprefix(f"{site.name}: ")
        if not writes:
            raise KeyFiltersError(f"nothing would be replaced: {'; '.join(refused)}")
        for name, write_ in writes.items():
            if progress is not None:
                progress(name)
            write_()
        return {name: found[name] for name in writes}

    return _replace_(sites, left, keys, choose_)


def _replace_(
    sites: Sequence[Site],
    left: dict[str, str],
    keys: Keys,
    choose_: Callable[[Sequence[tuple[Site, Offer]]], dict[str, Chosen]],
) -> pd.DataFrame:
    for site in sites:
        if (why_unusable(site.filters, dead_below=0.0) == "non-finite").any():
            raise KeyFiltersError(f"layer {site.name} holds filters that are not finite")
    offered = offer_keys(sites, keys, left)
    chosen = [(site, offered[site.name]) for site in sites if site.name in offered]
    before = {site.name: site.filters for site in sites}
    found = choose_(chosen)
    null = _null_filters(chosen, before)
    rows = [
        _row(site, before[site.name], offer, found[site.name], null[site.name])
        for site, offer in chosen
        if site.name in found
    ]
    return pd.DataFrame(rows + _left_alone(sites, left), columns=COLUMNS).sort_values(
        "depth", ignore_index=True, kind="stable"
    )


COLUMNS = ["layer", "size", "depth", "filters", "keys", "used", "explained", "chance", "cosine"]
COLUMNS += ["error", "output_error", "left"]


def _nearest(filters: NDArray[np.float64], offer: Offer) -> Chosen:
    """Best a · x + b of every filter by itself."""
    if isinstance(offer, KeySet):
        index, a, b, _ = offer.assign(filters)
        return Chosen(offer.reconstruct(index, a, b), index)
    a = (offer * filters).sum((1, 2), keepdims=True)
    return Chosen(a * offer + filters.mean((1, 2), keepdims=True), np.arange(len(filters)))


def _null_filters(
    chosen: Sequence[tuple[Site, Offer]], before: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """As many filters of every layer with the norms, means and tap covariance of its size."""
    bank = FilterBank(
        Layer("", site.name, before[site.name].astype(np.float32), None, None, 0.0)
        for site, _ in chosen
    )
    null = null_bank(bank, "covariance").layers
    return {layer.name: layer.weight.astype(np.float64) for layer in null}


def _row(
    site: Site,
    before: NDArray[np.float64],
    offer: Offer,
    chosen: Chosen,
    null: NDArray[np.float64],
) -> dict[str, Any]:
    old, new = before.reshape(len(before), -1), chosen.filters.reshape(len(before), -1)
    centred, now = (x - x.mean(1, keepdims=True) for x in (old, new))
    norms = np.linalg.norm(centred, axis=1) * np.linalg.norm(now, axis=1)
    cosine = np.abs((centred * now).sum(1))[norms > 0] / norms[norms > 0]
    power = float((centred**2).sum())
    return {
        "layer": site.name,
        "size": site.extent,
        "depth": site.depth,
        "filters": len(old),
        "keys": len(offer),
        "used": len(np.unique(chosen.index)),
        "explained": 1 - float(((centred - now) ** 2).sum()) / power if power else np.nan,
        "chance": _chance(null, offer) if power else np.nan,
        "cosine": float(np.median(cosine)) if len(cosine) else np.nan,
        "error": float(np.linalg.norm(new - old)) / max(float(np.linalg.norm(old)), 1e-30),
        "output_error": chosen.output_error,
        "left": "",
    }


def _chance(null: NDArray[np.float64], offer: Offer) -> float:
    """Share of the null filters' variance that the keys explain; NaN for models of their own."""
    if not isinstance(offer, KeySet):
        return np.nan
    a = offer.assign(null).a
    centred = null - null.mean((1, 2), keepdims=True)
    return float((a**2).sum() / (centred**2).sum())


def _left_alone(sites: Sequence[Site], left: dict[str, str]) -> list[dict[str, Any]]:
    known = {site.name: site for site in sites}
    rows = []
    for name, reason in left.items():
        row: dict[str, Any] = {"layer": name, "left": reason}
        if name in known:
            site = known[name]
            row |= {"size": site.extent, "depth": site.depth, "filters": len(site.weight)}
        rows.append(row)
    return rows
