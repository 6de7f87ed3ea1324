"""What each key explains of each filter: of its shape, or of what its layer gives."""

from __future__ import annotations

from copy import copy

import numpy as np
from numpy.random import SeedSequence
from numpy.typing import NDArray
from torch import nn

from keyfilters.bank import FilterBank, Layer
from keyfilters.errors import KeyFiltersError
from keyfilters.input_covariance import Settings, gather, original_outputs, output_shares
from keyfilters.keyset import KeySet
from keyfilters.nulls import null_bank
from keyfilters.sizes import Size, as_window, extent
from keyfilters.surgery.targets import Target, find_targets
from keyfilters.threads import one_thread
from keyfilters.training import evaluating

__all__ = ["OutputShares", "explained_shares", "sites_of_size"]


@one_thread()
def explained_shares(unit: NDArray[np.float32], keys: KeySet) -> NDArray[np.float32]:
    """Share of each filter's variance over the taps that each key explains, ``(n, K)``.

    Args:
        unit: ``(n, taps)`` centred filters of unit norm.
        keys: K keys of that size.
    """
    flat = keys.filters.reshape(len(keys), -1).astype(np.float32)
    return (unit @ flat.T) ** 2


class OutputShares:
    """Share of each filter's output variance that the best a · x + b of each key keeps.

    The inputs of every layer are those of the unchanged network on a few images, without labels;
    their covariance is taken once, after which any keys are judged in closed form, see
    `keyfilters.input_covariance`. Constants in the outputs, which a bias or a normalisation
    takes up, do not count, and every filter counts alike.

    Args:
        model: the network.
        size: kernel size k of the filters to look at, or ``(k_y, k_x)``.
        settings: images ``(n, channels, height, width)`` as the network takes them, and how they
            are used.

    Raises:
        KeyFiltersError: the network has no filters of that size.
    """

    def __init__(self, model: nn.Module, size: Size, settings: Settings) -> None:
        sites = sites_of_size(model, size)
        with evaluating(model):
            convs = {site.name: site.conv for site in sites if site.conv is not None}
            outputs = original_outputs(model, convs, settings)
            self.layers = [
                (
                    site.filters,
                    gather(model, site.conv, outputs[site.name], settings),
                )
                for site in sites
                if site.conv is not None
                and site.name in outputs  # else it takes no part in the forward pass
            ]
        self.ridge = settings.ridge
        self.size = as_window(size)

    def on_null(self, kind: str, seed: int | SeedSequence) -> OutputShares:
        """Return the same network with null filters at the same inputs.

        Args:
            kind: see `keyfilters.nulls.NULLS`.
            seed: of the null filters.
        """
        bank = FilterBank(
            Layer("", str(i), np.asarray(filters, np.float32).reshape(-1, *self.size),
                  None, None, 0.0)
            for i, (filters, _) in enumerate(self.layers)
        )  # fmt: skip
        null = copy(self)
        null.layers = [
            (layer.weight.reshape(np.shape(filters)).astype(np.asarray(filters).dtype), seen)
            for layer, (filters, seen) in zip(
                null_bank(bank, kind, seed).layers, self.layers, strict=True
            )
        ]
        return null

    def __call__(self, keys: KeySet) -> NDArray[np.float64]:
        """Return the shares, ``(n, K)``, of the filters in the order of the network's layers."""
        shapes = keys.filters[None]
        return np.concatenate(
            [output_shares(filters, shapes, seen, self.ridge) for filters, seen in self.layers]
        )


def sites_of_size(model: nn.Module, size: Size) -> list[Target]:
    """Find the depthwise layers with filters of one size, k or ``(k_y, k_x)``.

    Raises:
        KeyFiltersError: there are none.
    """
    window = as_window(size)
    sites = [site for site in find_targets(model)[0] if site.size == window]
    if not sites:
        raise KeyFiltersError(f"the network has no {extent(window)} depthwise filters")
    return sites
