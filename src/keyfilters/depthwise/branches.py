"""Re-parameterised blocks: branches that training keeps apart and that fuse into one kernel."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from keyfilters.errors import KeyFiltersError
from keyfilters.passes import copied, first_line, quiet, unwrapped

__all__ = ["METHODS", "branch_notes", "fused"]

METHODS = ("fuse", "reparameterize", "switch_to_deploy")  # in the order that timm tries them


def fused(module: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode whose blocks are fused.

    Branches and the batch normalisations behind them become the one kernel that is convolved with
    at inference, as ``timm.utils.reparameterize_model`` does. The network itself stays as it is.

    Raises:
        KeyFiltersError: it cannot be copied or fused.

    >>> fused(nn.Sequential(nn.Conv2d(8, 8, 5, groups=8)))[0].weight.shape
    torch.Size([8, 1, 5, 5])
    """
    try:
        with quiet():
            root = copied(unwrapped(module)).eval()
            _fuse_(root)
    except Exception as error:  # of any kind: this is the network's own code
        raise KeyFiltersError(
            f"the network cannot be fused ({first_line(error)}); read it with fused=False"
        ) from error
    return root


def _fuse_(module: nn.Module) -> None:
    child: Any
    for name, child in list(module.named_children()):
        if callable(getattr(child, "fuse", None)):
            new = child.fuse()
            if isinstance(new, nn.Module):
                setattr(module, name, new)
                child = new
        elif callable(getattr(child, "reparameterize", None)):
            child.reparameterize()
        elif callable(getattr(child, "switch_to_deploy", None)):
            child.switch_to_deploy()
        _fuse_(child)


def branch_notes(root: nn.Module) -> dict[str, str]:
    """Return a note for every depthwise convolution that is one of several branches of a block."""
    notes: dict[str, str] = {}
    for path, block in root.named_modules():
        if not path or not any(callable(getattr(block, x, None)) for x in METHODS):
            continue
        if sum(callable(getattr(m, x, None)) for m in block.modules() for x in METHODS) > 8:
            continue  # a stage or a whole network, no block
        convs = {
            f"{path}.{name}": conv
            for name, conv in block.named_modules()
            if name and isinstance(conv, (nn.Conv1d, nn.Conv2d)) and max(conv.kernel_size) > 1
        }
        depthwise = [n for n, conv in convs.items() if conv.groups == conv.in_channels > 1]
        branches = [n for n in depthwise if _same_channels(convs[n], convs[depthwise[0]])]
        for number, name in enumerate(branches, 1):
            if len(branches) > 1 and name not in notes:
                notes[name] = (
                    f"branch {number} of {len(branches)} of {path}, which fuse into one kernel; "
                    "kf.read(model, fused=True) reads that"
                )
    return notes


def _same_channels(conv: _ConvNd, other: _ConvNd) -> bool:
    return (conv.in_channels, conv.stride) == (other.in_channels, other.stride)
