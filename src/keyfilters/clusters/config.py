"""The settings of an atlas."""

from __future__ import annotations

from dataclasses import dataclass

from keyfilters.errors import KeyFiltersError

__all__ = ["AtlasConfig"]


@dataclass(frozen=True)
class AtlasConfig:
    """Settings of an atlas, echoed into its summary.

    Attributes:
        seed: of everything random; the seeds used are seed, seed + 1, ...
        seeds: number of seeds over which spreads and agreements are taken.
        threshold: dissimilarity below which a filter counts as classified; None for the values of
            babaiee2024unveiling, 0.3 for windows of 49 taps and more and 0.2 for smaller ones.
        counts: numbers of prototypes of the rate–distortion curve.
        fewest: kernel sizes with fewer usable filters are listed but not clustered.
        sample: at most so many filters of a size are used for fitting; all of them are assigned.
        feed_forward: whether to fit also the encoder network of babaiee2024unveiling, as a control;
            it takes longer than all other methods together.
        device: where the autoencoders are trained.
    """

    seed: int = 0
    seeds: int = 3
    threshold: float | None = None
    counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    fewest: int = 64
    sample: int = 30_000
    feed_forward: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise KeyFiltersError(f"threshold must lie between 0 and 1, got {self.threshold:g}")
        if self.seeds < 1 or self.seed < 0:
            raise KeyFiltersError(
                f"seeds must be at least 1 and seed at least 0, got {self.seeds} and {self.seed}"
            )

    def threshold_of(self, size: tuple[int, int]) -> float:
        """Threshold that applies to a kernel size ``(k_y, k_x)``."""
        if self.threshold is not None:
            return self.threshold
        return 0.3 if size[0] * size[1] >= 49 else 0.2
