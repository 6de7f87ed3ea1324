"""Pack networks of our own, with how they were trained and how well they do, into one archive.

    python benchmarks/zoo.py RUN [RUN …] [--out out/zoo/keyfilters-networks.zip]

RUN is a folder that `keyfilters train` wrote, or base_network.py (out/base). The archive goes with
a release and never into git. `keyfilters atlas ARCHIVE` reads its filters; unpacked, each folder
is one for `keyfilters.training.load_trained`. The same runs give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keyfilters as kf
from keyfilters.errors import KeyFiltersError
from keyfilters.files import whole_file
from keyfilters.training import load_trained
from keyfilters.training.models import WEIGHTS
from keyfilters.treatment import FilterRecipe, Treatment

CONFIGURED = ("pretrained_cfg", "pretrained_cfg_overlay")  # options that name weights too
CARD = """# {name}

{model}: {parameters:,} parameters, {filters:,} depthwise filters.

- trained by `keyfilters train` on {data}: {images:,} images of {height}×{width}, {epochs} epochs,
  seed {seed}, {minutes:.0f} minutes on {machine} (torch {torch}, timm {timm})
- **{accuracy:.1%}** of {test:,} test images right
- classes: {classes}
- images: from 0 to 1, less {mean}, divided by {std}, by channel

```python
from keyfilters.training import load_trained

network = load_trained("{name}")
```

The weights are ours, under Apache-2.0. The images are not included.
"""


def without_paths(recipe: FilterRecipe) -> FilterRecipe:
    """Return a recipe without the folders of the one who trained.

    Raises:
        KeyFiltersError: the network began with trained weights, or its filters were treated.
    """
    options = recipe.model.options
    if any(options.get(x) for x in (*WEIGHTS, *CONFIGURED)) or recipe.filters != Treatment():
        raise KeyFiltersError("only networks that began untrained and untreated are packed")
    return replace(recipe, data=replace(recipe.data, name=public_name(recipe.data.name), root=""))


def public_name(data: str) -> str:
    """Return the name of images, of a folder only the last part: hf:/a/b -> hf:b."""
    reader, colon, path = data.partition(":")
    if not colon:
        reader, path = "", data
    private = Path(path).is_absolute() or path.startswith(("~", ".")) or Path(path).exists()
    return f"{reader}{colon}{Path(path).name}" if private else data


def summary(run: Path) -> dict[str, Any]:
    """Return what a run measured, without folders."""
    found = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    found["data"]["name"] = public_name(found["data"]["name"])
    return found


def card(name: str, run: Path) -> str:
    """Say what a network is, from its files."""
    network, recipe = load_trained(run), FilterRecipe.load(run / "recipe.toml")
    found = summary(run)
    data, used = found["data"], found["environment"]
    images, _, height, width = data["training"]
    return CARD.format(
        name=name, model=f"{recipe.model.name} {recipe.model.options}",
        parameters=found["parameters"], filters=len(kf.read(network)),
        data=data["name"], images=images, height=height, width=width,
        epochs=found["epoch"], seed=recipe.seed, minutes=found["seconds"] / 60,
        machine=used["machine"], torch=used["torch"], timm=used["timm"],
        accuracy=found["test_top1"], test=data["test"][0], classes=", ".join(data["classes"]),
        mean=data["mean"], std=data["std"],
    )  # fmt: skip


def pack(runs: Sequence[Path], out: Path) -> None:
    """Write the archive: for every run its card, recipe, summary and weights."""
    names = [run.absolute().name for run in runs]
    if len(set(names)) < len(names):
        raise KeyFiltersError(f"two runs are called the same: {', '.join(sorted(names))}")
    with whole_file(out) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, run in sorted(zip(names, runs, strict=True)):
            contents: dict[str, str | bytes] = {
                "README.md": card(name, run),
                "recipe.toml": without_paths(FilterRecipe.load(run / "recipe.toml")).to_toml(),
                "summary.json": json.dumps(summary(run), indent=1, ensure_ascii=False),
                "model.safetensors": (run / "model.safetensors").read_bytes(),
            }
            for file, content in contents.items():
                entry = zipfile.ZipInfo(f"{name}/{file}")  # of 1980: no time, the same bytes
                archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("out/zoo/keyfilters-networks.zip"))
    given = parser.parse_args()
    pack(given.runs, given.out)
    digest = hashlib.sha256(given.out.read_bytes()).hexdigest()
    print(f"{given.out}: {given.out.stat().st_size / 1e6:.1f} MB, sha256 {digest}")


if __name__ == "__main__":
    main()
