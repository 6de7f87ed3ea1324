"""Options by name, in the manner of scikit-learn."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from keyfilters.errors import KeyFiltersError, SourceError, nearest
from keyfilters.tensor_files import save_tensors

__all__ = ["Estimator", "load_estimator", "save_estimator"]


class Estimator:
    """What takes options by name and is then fitted: `sklearn.base.clone` and pipelines take it.

    scikit-learn's own base class does the same, but its import takes longer than naming all filters
    of a model; it is imported only where scikit-learn asks.

    >>> class Shift(Estimator):
    ...     def __init__(self, by: int = 1) -> None:
    ...         self.by = by
    >>> Shift(by=2).get_params(), Shift().set_params(by=3)
    ({'by': 2}, Shift(by=3))
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the options by name; `deep` is taken for scikit-learn, and nothing is nested."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Change options, in place.

        Raises:
            KeyFiltersError: an unknown option, or a value that the class refuses.
        """
        options = self.get_params()
        for name in params:
            if name not in options:
                raise KeyFiltersError(
                    f"{type(self).__name__} has no option {name!r}{nearest(name, list(options))}; "
                    f"its options are {', '.join(options)}"
                )
        type(self)(**options | params)  # an error for values that cannot be
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn asks of everything in a pipeline."""
        from sklearn.base import BaseEstimator

        return BaseEstimator.__sklearn_tags__(self)

    def __repr__(self) -> str:
        given = [
            f"{name}={getattr(self, name)!r}"
            for name, parameter in inspect.signature(type(self)).parameters.items()
            if getattr(self, name) != parameter.default
        ]
        return f"{type(self).__name__}({', '.join(given)})"


def save_estimator(
    path: str | os.PathLike[str],
    fitted: Estimator,
    options: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
) -> None:
    """Write options (as JSON) and what was learned as one safetensors file."""
    metadata = {"format": _kind(type(fitted)), "options": json.dumps(options)}
    save_tensors(Path(path), tensors, metadata)


def read_tensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Return the metadata and the tensors of a safetensors file.

    Raises:
        SourceError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def load_estimator(
    path: str | os.PathLike[str], kind: type[Estimator]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read the options and tensors that `save_estimator` wrote.

    Raises:
        SourceError: the file is missing, damaged, or of another kind.
    """
    metadata, tensors = read_tensors(path)
    found = metadata.get("format")
    if found != _kind(kind):
        raise SourceError(f"{path} holds no {kind.__name__}: expected format {_kind(kind)!r}, "
                          f"got {found!r}")  # fmt: skip
    return json.loads(metadata["options"]), tensors


def _kind(kind: type[Estimator]) -> str:
    return f"keyfilters-{kind.__name__}-1"
