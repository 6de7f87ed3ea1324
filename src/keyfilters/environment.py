"""On what something was computed, to stand beside every figure."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version

__all__ = ["environment"]

PACKAGES = ("keyfilters", "torch", "timm", "scikit-learn", "numpy")


def environment() -> dict[str, str]:
    """Return the date, the versions of Python and of the packages that matter, and the machine.

    >>> list(environment())
    ['date', 'python', 'keyfilters', 'torch', 'timm', 'scikit-learn', 'numpy', 'machine']
    """
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
