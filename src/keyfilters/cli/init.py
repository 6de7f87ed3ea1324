"""``keyfilters init``: a model of timm whose depthwise filters start from a scheme."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from keyfilters.cli.common import (
    HiddenDevice,
    Layers,
    Out,
    Seed,
    check_out,
    folder_at_once,
    layer_names,
)
from keyfilters.cli.tables import say, show
from keyfilters.errors import KeyFiltersError


def init(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model of timm, such as convnextv2_atto; built without trained weights.",
            show_default=False,
        ),
    ],
    scheme: Annotated[
        str,
        typer.Option(
            help="center-surround, keys, idealized, covariance, impulse, trunc-normal, kaiming or "
            "default, with options as in center-surround?gammas=0.5."
        ),
    ] = "center-surround",
    std: Annotated[
        str | None,
        typer.Option(help="Scale: a number, or keep for the model's own.", show_default=False),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(help="For keys: a published set or a file of filters.", show_default=False),
    ] = None,
    bank: Annotated[
        list[str] | None,
        typer.Option(help="For idealized: a SOURCE of trained filters.", show_default=False),
    ] = None,
    layers: Layers = None,
    out: Out = None,
    seed: Seed = 0,
    device: HiddenDevice = "cpu",
) -> None:
    """Initialise the depthwise filters of a model.

    With --out, writes model.safetensors, which timm loads by checkpoint_path, and init.csv. All is
    computed on the CPU, so that a seed gives the same bits everywhere.
    """
    from safetensors.torch import save_model

    import keyfilters as kf
    from keyfilters.sources.timm_models import load_timm
    from keyfilters.surgery.key_choice import named_key_sets
    from keyfilters.treatment import initialize_by_name_

    check_out(out)
    _check_scheme(scheme, bank)
    options: dict[str, Any] = {} if std is None else {"std": _scale(std)}
    name = model.removeprefix("timm:").split("?")[0]
    module, label = load_timm(f"{name}?pretrained=false", seed)
    if keys is not None:
        options["keys"] = named_key_sets(keys, kf.read(module), seed)
    if bank:
        options["bank"] = kf.read(*bank)
    chosen = layer_names(layers)
    report = initialize_by_name_(module, scheme, seed, layers=chosen, **options)
    show(report, f"{label}, {scheme}")
    if out is not None:
        with folder_at_once(out) as unfinished:
            save_model(module, str(unfinished / "model.safetensors"), metadata={"format": "pt"})
            report.to_csv(unfinished / "init.csv", index=False)
        say(f"The model: {(out / 'model.safetensors').resolve()}")


def _check_scheme(scheme: str, bank: list[str] | None) -> None:
    if scheme.partition("?")[0] == "idealized" and not bank and "bank=" not in scheme:
        raise KeyFiltersError(
            "--scheme idealized follows trained filters; type also: --bank SOURCE"
        )


def _scale(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        if text == "keep":
            return text
        raise KeyFiltersError(f"--std {text}: expected a number or keep") from None
