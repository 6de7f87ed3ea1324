"""Read, name and explain the spatial filters of depthwise-separable CNNs.

>>> import keyfilters as kf
>>> from torch import nn
>>> kf.read(nn.Conv2d(16, 16, 7, groups=16)).sizes
{(7, 7): 16}
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyfilters import init as init
    from keyfilters import plot as plot
    from keyfilters import scalespace as scalespace
    from keyfilters.bank import FilterBank as FilterBank
    from keyfilters.bank import Layer as Layer
    from keyfilters.clusters import Atlas as Atlas
    from keyfilters.clusters.keys import learn_keys as learn_keys
    from keyfilters.clusters.load_atlas import load_atlas as load_atlas
    from keyfilters.discovery import discover_keys as discover_keys
    from keyfilters.discovery.universality import universality as universality
    from keyfilters.errors import KeyFiltersError as KeyFiltersError
    from keyfilters.inspection import Monitor as Monitor
    from keyfilters.inspection import check as check
    from keyfilters.inspection import compare as compare
    from keyfilters.keyset import KeySet as KeySet
    from keyfilters.nulls import null_bank as null_bank
    from keyfilters.receptive_fields import fit_idealized as fit_idealized
    from keyfilters.receptive_fields import match as match
    from keyfilters.report import write_report as write_report
    from keyfilters.sources import read as read
    from keyfilters.surgery import bake_filters_ as bake_filters_
    from keyfilters.surgery import freeze_filters_ as freeze_filters_
    from keyfilters.surgery import initialize_filters_ as initialize_filters_
    from keyfilters.surgery import parametrize_filters_ as parametrize_filters_
    from keyfilters.surgery import replace_filters_ as replace_filters_
    from keyfilters.surgery import transfer_filters_ as transfer_filters_

# Public name -> module that holds it. Imported on first use, so that `import keyfilters` and the
# command line's --help do not wait for torch.
_PUBLIC = {
    "Atlas": "keyfilters.clusters",
    "FilterBank": "keyfilters.bank",
    "KeyFiltersError": "keyfilters.errors",
    "KeySet": "keyfilters.keyset",
    "Layer": "keyfilters.bank",
    "Monitor": "keyfilters.inspection",
    "bake_filters_": "keyfilters.surgery",
    "check": "keyfilters.inspection",
    "compare": "keyfilters.inspection",
    "discover_keys": "keyfilters.discovery",
    "fit_idealized": "keyfilters.receptive_fields",
    "freeze_filters_": "keyfilters.surgery",
    "init": "",
    "initialize_filters_": "keyfilters.surgery",
    "learn_keys": "keyfilters.clusters.keys",
    "load_atlas": "keyfilters.clusters.load_atlas",
    "match": "keyfilters.receptive_fields",
    "null_bank": "keyfilters.nulls",
    "parametrize_filters_": "keyfilters.surgery",
    "plot": "",
    "read": "keyfilters.sources",
    "replace_filters_": "keyfilters.surgery",
    "scalespace": "",
    "transfer_filters_": "keyfilters.surgery",
    "universality": "keyfilters.discovery.universality",
    "write_report": "keyfilters.report",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("keyfilters")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'keyfilters' has no attribute {name!r}")
    if not _PUBLIC[name]:
        return importlib.import_module(f"keyfilters.{name}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
