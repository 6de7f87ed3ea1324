"""``keyfilters replace``: write every depthwise filter as a · key + b, and say what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from keyfilters.cli.common import (
    Device,
    Out,
    Seed,
    check_device,
    check_out,
    folder_at_once,
    progress_bar,
)
from keyfilters.cli.images import Images, halves
from keyfilters.cli.keys import KeysOption, keys_of
from keyfilters.cli.tables import show
from keyfilters.errors import KeyFiltersError

SHOWN = ("layer", "size", "filters", "keys", "used", "explained", "chance", "output_error", "left")


def replace(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="timm:NAME, or a .safetensors, .pth, .pt or .onnx file, whose format is kept; "
            "package:DIST/FILE for one that a package brings.",
            show_default=False,
        ),
    ],
    keys: KeysOption = "lindeberg2026-B",
    images: Images = None,
    count: Annotated[int, typer.Option(help="Crops to take from photos.", min=2)] = 128,
    layers: Annotated[
        str | None,
        typer.Option(help="Names or patterns, with commas; default all.", show_default=False),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option(help="Also replace one layer at a time and measure (needs --images).")
    ] = False,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Replace the depthwise filters of a model by the keys nearest to them.

    With --out, writes the model (model.safetensors for timm: models, otherwise the format of
    SOURCE), replace.csv and, with --images, agreement.json and sensitivity.csv.
    """
    check_out(out)
    check_device(device)
    chosen = None if layers is None else [name.strip() for name in layers.split(",")]
    if source.startswith("timm:"):
        _replace_module(source, keys, images, count, chosen, sensitivity, out, seed, device)
    elif images is not None or sensitivity:
        raise KeyFiltersError("--images and --sensitivity need a model that runs: timm:NAME")
    else:
        _replace_file(_file(source), keys, chosen, out, seed)


def _file(source: str) -> Path:
    from keyfilters.sources import package_files

    if source.startswith("hf-hub:"):
        raise KeyFiltersError(f"{source} cannot be replaced; download it and name the file")
    if not source.startswith("package:"):
        return Path(source)
    files = package_files(source.removeprefix("package:"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:8])
        raise KeyFiltersError(f"{source} holds {len(files)} models; add one of: /{names}")
    return files[0]


def _replace_file(
    source: Path, keys: str, layers: list[str] | None, out: Path | None, seed: int
) -> None:
    import shutil
    import tempfile

    import keyfilters as kf
    from keyfilters.surgery.files import replace_in_file

    bank = kf.read(source)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, source.name)
        report = replace_in_file(source, target, keys_of(keys, bank, seed), layers=layers)
        show(report, f"{source.name}, keys {keys}", SHOWN)
        if out is not None:
            with folder_at_once(out) as unfinished:
                for file in Path(folder).iterdir():  # a model's external data is beside it
                    shutil.copyfile(file, unfinished / file.name)
                report.to_csv(unfinished / "replace.csv", index=False)
            typer.echo(f"The model: {(out / source.name).resolve()}")


def _replace_module(
    source: str,
    keys: str,
    images: str | None,
    count: int,
    layers: list[str] | None,
    sensitivity: bool,
    out: Path | None,
    seed: int,
    device: str,
) -> None:
    import copy
    import json

    from safetensors.torch import save_model

    import keyfilters as kf
    from keyfilters.sources.timm_models import load_timm
    from keyfilters.surgery import layer_sensitivity, replace_filters_
    from keyfilters.training.evaluate import agreement, logits

    if sensitivity and images is None:
        raise KeyFiltersError("--sensitivity needs --images")
    model, label = load_timm(source.removeprefix("timm:"), seed)
    model = model.to(device).eval()
    named = keys_of(keys, kf.read(model), seed)
    table = None
    measured: dict[str, Any] = {}
    with progress_bar() as step:
        if images is None:
            report = replace_filters_(model, named, layers=layers, progress=step)
        else:
            own, others = (x.to(device) for x in halves(images, model, count, seed))
            step("the model as it is")
            original, reference = copy.deepcopy(model), logits(model, others, device)
            report = replace_filters_(
                model, named, layers=layers, images=own, seed=seed, progress=step
            )
            step("the model after surgery")
            found = agreement(model, reference, others, device=device)
            measured = {
                "source": label,
                "keys": keys,
                "images": images,
                "chosen on": len(own),
                "measured on": found.count,
                "top1 agreement": found.top1,
                "interval": found.interval,
                "kl": found.kl,
                "logit_error": found.logit_error,
                "seed": seed,
            }
            if sensitivity:
                table = layer_sensitivity(
                    original, named, others, layers=layers, device=device, progress=step
                )
    show(report, f"{label}, keys {keys}", SHOWN)
    if measured:
        low, high = measured["interval"]
        typer.echo(
            f"Same answer as before on {measured['top1 agreement']:.1%} of "
            f"{measured['measured on']} images ({low:.1%} to {high:.1%}); "
            f"relative logit error {measured['logit_error']:.2f}"
        )
    if table is not None:
        show(table, "One layer at a time", ("layer", "size", "filters", "top1", "kl"))
    if out is not None:
        with folder_at_once(out) as unfinished:
            save_model(
                model.cpu(), str(unfinished / "model.safetensors"), metadata={"format": "pt"}
            )
            report.to_csv(unfinished / "replace.csv", index=False)
            if measured:
                text = json.dumps(measured, indent=1)
                (unfinished / "agreement.json").write_text(text, encoding="utf-8")
            if table is not None:
                table.to_csv(unfinished / "sensitivity.csv", index=False)
        typer.echo(f"The model: {(out / 'model.safetensors').resolve()}")
