"""The autoencoder of babaiee2024unveiling, with an encoder network: a control.

A continuous encoder cannot send neighbouring filters to distant codes, so it stops far short of
what its decoder could represent.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from keyfilters.clusters.estimator import Estimator, load_estimator, save_estimator
from keyfilters.clusters.principal_curve import unit_form
from keyfilters.errors import refuse_damage
from keyfilters.threads import one_thread

__all__ = ["FeedForwardAutoencoder"]


class FeedForwardAutoencoder(Estimator):
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
    def fit(self, unit: NDArray[np.float32], y: None = None) -> FeedForwardAutoencoder:
        """Train on ``(n, taps)`` centred unit filters; `y` is taken for scikit-learn."""
        taps = unit.shape[1]
        filters = torch.tensor(unit)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._build(taps)
            weights = [*self._encoder.parameters(), *self._decoder.parameters()]
            optimiser = torch.optim.Adam(weights, lr=2e-3, fused=True)
            for _ in range(self.epochs):
                for batch in filters[torch.randperm(len(filters))].split(512):
                    optimiser.zero_grad()
                    (1 - (self._reconstruct(batch) * batch).sum(1)).mean().backward()
                    optimiser.step()
        return self

    def transform(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the codes ``(n, dimensions)`` in (0, 1) of ``(n, taps)`` centred unit filters."""
        with torch.no_grad():
            return self._encode(torch.tensor(unit)).numpy()

    def predict(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the network makes of filters: ``(n, taps)``, centred and of unit norm."""
        filters = torch.tensor(unit)
        with torch.no_grad():
            return torch.cat([self._reconstruct(x) for x in filters.split(1 << 16)]).numpy()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the options and the weights as one safetensors file."""
        networks = nn.ModuleDict({"encoder": self._encoder, "decoder": self._decoder})
        tensors = {name: tensor.numpy() for name, tensor in networks.state_dict().items()}
        save_estimator(path, self, self.get_params(), tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeedForwardAutoencoder:
        """Read a file that `save` wrote.

        Raises:
            SourceError: it is missing, damaged, or of another kind.
        """
        with refuse_damage(path, "an autoencoder"):
            options, tensors = load_estimator(path, cls)
            found = cls(**options)
            found._build(tensors["encoder.0.weight"].shape[1])
            networks = nn.ModuleDict({"encoder": found._encoder, "decoder": found._decoder})
            networks.load_state_dict({name: torch.from_numpy(x) for name, x in tensors.items()})
            return found

    def dissimilarity(self, unit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Dissimilarity ``(n,)`` of ``(n, taps)`` filters to what the network makes of them."""
        return 1 - (self.predict(unit) * unit).sum(axis=1)

    def _reconstruct(self, batch: Tensor) -> Tensor:
        return unit_form(self._decoder(self._encode(batch)))

    def _encode(self, batch: Tensor) -> Tensor:
        # Scaled to taps of unit variance, which the usual initial weights expect.
        return torch.sigmoid(self._encoder(batch * math.sqrt(batch.shape[1])))

    def _build(self, taps: int) -> None:
        self._encoder = _perceptron(taps, 128, self.dimensions)
        self._decoder = _perceptron(self.dimensions, 128, taps)


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Linear(hidden, outputs),
    )
