"""Batch normalisation after surgery."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from keyfilters.surgery import recalibrate_batchnorm_


class PartlyUsed(nn.Module):
    """A network with a normalisation that no image reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, groups=4)
        self.used, self.unused = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(self.conv(x))
        return out


def test_normalisations_that_no_image_reaches_are_not_counted() -> None:
    original = PartlyUsed().eval()
    changed = copy.deepcopy(original)
    nn.init.constant_(changed.conv.weight, 0.1)
    assert recalibrate_batchnorm_(changed, original, torch.ones(4, 4, 8, 8).cumsum(3)) == 1
    assert not torch.equal(changed.used.running_mean, original.used.running_mean)
    assert torch.equal(changed.unused.running_mean, original.unused.running_mean)
