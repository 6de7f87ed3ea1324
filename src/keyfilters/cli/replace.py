"""``keyfilters replace``: write every depthwise filter as a · key + b, and say what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyfilters.cli.common import (
    Device,
    Layers,
    Out,
    Seed,
    check_out,
    folder_at_once,
    layer_names,
    progress_bar,
)
from keyfilters.cli.images import Images, halves, refuse_count
from keyfilters.cli.keys import KeysOption, keys_of
from keyfilters.cli.tables import say, show
from keyfilters.errors import KeyFiltersError
from keyfilters.files import temporary_folder

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    # The report, what was measured on images, and the report of one layer at a time.
    Done = tuple[pd.DataFrame, dict[str, Any], pd.DataFrame | None]

SHOWN = ("layer", "size", "filters", "keys", "used", "explained", "chance", "output_error", "left")


def replace(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="timm:NAME, or a .safetensors, .pth, .pt, .onnx, .tflite, .h5, .keras or "
            "OpenVINO .xml file, whose format is kept; "
            "package:DIST/FILE for one that a package brings.",
            show_default=False,
        ),
    ],
    keys: KeysOption = "lindeberg2026-B",
    model: Annotated[
        str | None,
        typer.Option(
            help="timm:NAME, the architecture to load a checkpoint SOURCE into, for --images.",
            show_default=False,
        ),
    ] = None,
    images: Images = None,
    count: Annotated[int, typer.Option(help="Crops to take from photos.", min=2)] = 128,
    layers: Layers = None,
    sensitivity: Annotated[
        bool, typer.Option(help="Also replace one layer at a time and measure (needs --images).")
    ] = False,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Replace the depthwise filters of a model by the keys nearest to them.

    With --out, writes the model (model.safetensors for timm: models and with --model, otherwise the
    format of SOURCE), replace.csv and, with --images, agreement.json and sensitivity.csv.
    """
    check_out(out)
    refuse_count(context, images)
    if sensitivity and images is None:
        raise KeyFiltersError("--sensitivity needs --images")
    chosen, network = layer_names(layers), _network(source, model, seed)
    if network is None:
        if images is not None:
            raise KeyFiltersError("--images needs a model that runs; type --model timm:NAME too")
        _replace_file(_file(source), keys, chosen, out, seed)
        return
    net, label = network[0].to(device).eval(), network[1]
    with progress_bar() as step:
        options = {"layers": chosen, "progress": step}
        how = None if images is None else (images, count, device, sensitivity)
        report, measured, table = _replace_network(net, keys, seed, how, options)
    if measured:
        measured |= {"source": label, "keys": keys, "images": images, "seed": seed}
    _conclude(net, (report, measured, table), f"{label}, keys {keys}", out)


def _network(source: str, model: str | None, seed: int) -> tuple[nn.Module, str] | None:
    """Return the network that runs and a name for it; None if SOURCE is only a file."""
    from keyfilters.sources.timm_models import load_timm
    from keyfilters.surgery.files import load_into

    if source.startswith("timm:"):
        if model is not None:
            raise KeyFiltersError(f"--model is for a checkpoint file; {source} is a model itself")
        return load_timm(source.removeprefix("timm:"), seed)
    return None if model is None else (load_into(_file(source), model), f"{source} in {model}")


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
    import keyfilters as kf
    from keyfilters.surgery.files import replace_in_file

    bank = kf.read(source)
    named = keys_of(keys, bank, seed)
    with temporary_folder() if out is None else folder_at_once(out) as folder:
        report = replace_in_file(source, folder / source.name, named, layers=layers)
        show(report, f"{source.name}, keys {keys}", SHOWN)
        if out is not None:
            report.to_csv(folder / "replace.csv", index=False)
    if out is not None:
        say(f"The model: {(out / source.name).resolve()}")


def _replace_network(
    net: nn.Module,
    keys: str,
    seed: int,
    how: tuple[str, int, str, bool] | None,
    options: dict[str, Any],
) -> Done:
    """Replace the filters of a network; with images, measure on the other half of them."""
    import copy

    import keyfilters as kf
    from keyfilters.surgery import layer_sensitivity
    from keyfilters.training.evaluate import agreement, logits

    named = keys_of(keys, kf.read(net), seed)
    if how is None:
        return kf.replace_filters_(net, named, **options), {}, None
    images, count, device, sensitivity = how
    own, others = (x.to(device) for x in halves(images, net, count, seed))
    original, reference = copy.deepcopy(net), logits(net, others, device)
    report = kf.replace_filters_(net, named, images=own, seed=seed, **options)
    found = agreement(net, reference, others, device=device)
    measured = {
        "chosen on": len(own),
        "measured on": found.count,
        "top1 agreement": found.top1,
        "interval": found.interval,
        "kl": found.kl,
        "logit_error": found.logit_error,
    }
    if not sensitivity:
        return report, measured, None
    return report, measured, layer_sensitivity(original, named, others, device=device, **options)


def _conclude(net: nn.Module, done: Done, title: str, out: Path | None) -> None:
    import json

    from safetensors.torch import save_model

    report, measured, table = done
    show(report, title, SHOWN)
    if measured:
        low, high = measured["interval"]
        say(
            f"Same answer as before on {measured['top1 agreement']:.1%} of "
            f"{measured['measured on']} images ({low:.1%} to {high:.1%}); "
            f"relative logit error {measured['logit_error']:.2f}"
        )
    if table is not None:
        show(table, "One layer at a time", ("layer", "size", "filters", "top1", "kl"))
    if out is None:
        return
    with folder_at_once(out) as unfinished:
        path = str(unfinished / "model.safetensors")
        save_model(net.cpu(), path, metadata={"format": "pt"})
        report.to_csv(unfinished / "replace.csv", index=False)
        if measured:
            text = json.dumps(measured, indent=1)
            (unfinished / "agreement.json").write_text(text, encoding="utf-8")
        if table is not None:
            table.to_csv(unfinished / "sensitivity.csv", index=False)
    say(f"The model: {(out / 'model.safetensors').resolve()}")
