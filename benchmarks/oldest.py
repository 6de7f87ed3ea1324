"""Print the oldest versions that pyproject.toml allows, as constraints for pip.

python benchmarks/oldest.py > constraints.txt    # what `make test-oldest` installs
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
STATED = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)")


def oldest() -> list[str]:
    """Return ``name==version`` of every dependency with a floor, those of extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    stated = [*project["dependencies"], *(x for extra in extras for x in extra)]
    found = [STATED.match(x) for x in stated]
    return sorted({f"{x[1]}=={x[2]}" for x in found if x is not None})


if __name__ == "__main__":
    print("\n".join(oldest()))
