"""Which batch normalisation is behind a convolution: by a forward pass, or by registration."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from keyfilters.passes import on_example
from keyfilters.surgery.traced import norms_behind

__all__ = ["following_batchnorm", "join", "traced_batchnorms"]


def traced_batchnorms(root: nn.Module) -> dict[nn.Module, str]:
    """Find by a forward pass on an example which normalisation is behind which convolution."""
    traced = on_example(root, _named_norms)
    modules = dict(root.named_modules())
    return {modules[conv]: norm for conv, norm in (traced or {}).items()}


def _named_norms(twin: nn.Module, images: Tensor) -> dict[str, str]:
    names = {module: name for name, module in twin.named_modules()}
    return {
        names[conv]: names[norm]
        for conv, norm in norms_behind(twin, images).items()
        if isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))
    }


def following_batchnorm(model: nn.Module, name: str) -> str:
    """Return the dotted name of the batch normalisation that directly follows a convolution.

    It is the next `torch.nn.BatchNorm2d` (or SyncBatchNorm) that the convolution's own parent
    registers, with as many features as the convolution has outputs, and before the parent's next
    convolution or linear layer. Registration is taken for the order of the forward pass.

    Args:
        model: the module that holds both.
        name: dotted name of the convolution.

    Returns:
        Its name, or the empty string where none follows.

    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.BatchNorm2d(8))
    >>> following_batchnorm(net, "0")
    '2'
    """
    conv = model.get_submodule(name)
    path = name.rpartition(".")[0]
    children = list(model.get_submodule(path).named_children())
    place = [module for _, module in children].index(conv) if name else len(children)
    for child, module in children[place + 1 :]:
        if isinstance(module, (_ConvNd, nn.Linear)):
            break
        normalises = isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))
        if normalises and module.num_features == conv.out_channels:
            return join(path, child)
    return ""


def join(path: str, name: str) -> str:
    """Return the dotted name of a part of a module, which may be the root."""
    return f"{path}.{name}" if path else name
