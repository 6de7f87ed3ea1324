"""Networks that lend their weights, and how long those of one family are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

from keyfilters.experiments.experiment import Shared
from keyfilters.query_strings import parse

if TYPE_CHECKING:
    from keyfilters.experiments.run import Run

__all__ = ["equal_steps", "growing", "source_network"]


def source_network(shared: Shared, data: str, seed: int, steps: int = 0) -> Run:
    """Return the run of a network that lends its weights to those of a seed.

    It starts from the next seed, so that what is borrowed never fitted the first weights of the
    rest by chance, but is trained on the images of the network that borrows.
    """
    from keyfilters.experiments.single_run import make_run

    options = shared.options(data=data)
    if "samples" in parse(data)[1]:
        options["images_seed"] = seed
    if steps:
        options["changes"] = {"schedule": {"steps": steps}}
    return make_run({"source": data}, seed + 1, options)


def equal_steps(counts: Mapping[str, int], shared: Shared) -> dict[str, int]:
    """Return the steps for each source: as many as the largest of its family takes.

    Those without a family have 0: their epochs count.

    >>> equal_steps({"digits": 1437, "digits?samples=320": 320, "photos": 1400}, Shared(epochs=2))
    {'digits': 44, 'digits?samples=320': 44, 'photos': 0}
    """
    from keyfilters.experiments.run_parts import recipe_of

    members: dict[str, list[int]] = {}
    for source, count in counts.items():
        members.setdefault(_family(source), []).append(count)
    steps = {}
    for source in counts:
        family = members[_family(source)]
        recipe = recipe_of(shared.options(), 0, max(family))
        steps[source] = recipe.steps(max(family)) if len(family) > 1 else 0
    return steps


def _family(source: str) -> str:
    """Return a data set without its number of samples."""
    name, options = parse(source)
    options.pop("samples", None)
    return f"{name} {options}"


def growing(sources: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs (smaller, next larger) of sources that differ in their samples only."""
    families: dict[str, list[tuple[float, str]]] = {}
    for source in sources:
        samples = parse(source)[1].get("samples", 0) or inf  # 0 takes all
        families.setdefault(_family(source), []).append((samples, source))
    return [
        (small, large)
        for members in families.values()
        for (_, small), (_, large) in pairwise(sorted(members))
    ]
