"""The autoencoder of babaiee2024unveiling, with an encoder network: a control.

A continuous encoder cannot send neighbouring filters to distant codes, so it stops far short of
what its decoder could represent.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyfilters.clusters.principal_curve import unit_form
from keyfilters.threads import one_thread

__all__ = ["FeedForwardAutoencoder"]


class FeedForwardAutoencoder:
    """The autoencoder of babaiee2024unveiling: encoder network, sigmoid code, decoder network.

    Args:
        dimensions: of the code.
        seed: of the initial weights and the order of the filters.
        epochs: passes over the filters.
    """

    def __init__(self, dimensions: int = 1, seed: int = 0, *, epochs: int = 30) -> None:
        self.dimensions = dimensions
        self.seed = seed
        self.epochs = epochs

    @one_thread()
    def fit(self, unit: NDArray[np.float32]) -> FeedForwardAutoencoder:
        """Train on ``(n, taps)`` centred unit filters."""
        taps = unit.shape[1]
        filters = torch.tensor(unit)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._encoder = _perceptron(taps, 128, self.dimensions)
            self._decoder = _perceptron(self.dimensions, 128, taps)
            weights = [*self._encoder.parameters(), *self._decoder.parameters()]
            optimiser = torch.optim.Adam(weights, lr=2e-3, fused=True)
            for _ in range(self.epochs):
                for batch in filters[torch.randperm(len(filters))].split(512):
                    optimiser.zero_grad()
                    (1 - (self._reconstruct(batch) * batch).sum(1)).mean().backward()
                    optimiser.step()
        return self

    def dissimilarity(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Dissimilarity ``(n,)`` of ``(n, taps)`` filters to what the network makes of them."""
        filters = torch.tensor(unit)
        with torch.no_grad():
            cosine = [(self._reconstruct(part) * part).sum(1) for part in filters.split(1 << 16)]
        return 1 - torch.cat(cosine).numpy()

    def _reconstruct(self, batch: Tensor) -> Tensor:
        # Scaled to taps of unit variance, which the usual initial weights expect.
        return unit_form(
            self._decoder(torch.sigmoid(self._encoder(batch * math.sqrt(batch.shape[1]))))
        )


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Linear(hidden, outputs),
    )
