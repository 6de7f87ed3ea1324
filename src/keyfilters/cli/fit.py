"""``keyfilters fit``: which idealised receptive field, at which scale, is each filter of a file?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyfilters.cli.common import HiddenDevice, Out, check_out, folder_at_once
from keyfilters.cli.tables import cell, print_table, say
from keyfilters.errors import KeyFiltersError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from keyfilters.receptive_fields import Fit


def fit(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Text in blocks of rows ('Filter 1:' before each), .npy, .npz or .safetensors.",
            show_default=False,
        ),
    ],
    method: Annotated[
        str, typer.Option(help="A, B, C1, C2, D1, D2, A-joint, B-joint, C-joint or D-joint.")
    ] = "B",
    operators: Annotated[
        str | None,
        typer.Option(
            help="One a filter, with commas: dx, dy, dx+, dx-, dy+, dy-, dxx, dyy, dxy, laplacian, "
            "sharpen, smooth; y points up. Default for eight filters: those of the eight key "
            "filters.",
            show_default=False,
        ),
    ] = None,
    out: Out = None,
    seed: Annotated[int, typer.Option(hidden=True)] = 0,
    device: HiddenDevice = "cpu",
) -> None:
    """Fit an idealised receptive field to each of a few filters.

    With --out, writes fit.csv (scales and residuals) and fit.png (filters beside their models).
    """
    from keyfilters.receptive_fields import PUBLISHED_OPERATORS, fit_idealized, read_filters

    check_out(out)
    filters, names = read_filters(file)
    if operators is not None:
        chosen = [name.strip() for name in operators.split(",")]
    elif len(filters) == len(PUBLISHED_OPERATORS):
        chosen = list(PUBLISHED_OPERATORS)
    else:
        example = ",".join(PUBLISHED_OPERATORS[: min(4, len(filters))])
        raise KeyFiltersError(
            f"{file.name} holds {_filters(len(filters))}; name one operator for each, as in "
            f"--operators {example}{',…' if len(filters) > 4 else ''}"
        )
    fitted = fit_idealized(filters, chosen, method)
    rows = fitted.table.assign(name=list(names))
    _print(rows, f"{_filters(len(rows))} of {file.name}, method {method}")
    if out is not None:
        with folder_at_once(out) as unfinished:
            rows.to_csv(unfinished / "fit.csv", index=False)
            _draw(fitted, names).savefig(unfinished / "fit.png", dpi=150)
        say(f"The fits: {(out / 'fit.csv').resolve()}")


def _filters(count: int) -> str:
    return "1 filter" if count == 1 else f"{count} filters"


def _print(rows: pd.DataFrame, title: str) -> None:
    from rich.table import Table

    table = Table(title=cell(title))
    table.add_column("name", overflow="fold")
    table.add_column("operator")
    for column in ("σx", "σy", "α", "ℓ1", "ℓ2"):
        table.add_column(column, justify="right")
    table.add_column("at its end", overflow="fold")
    for row in rows.itertuples():
        alpha = f"{row.alpha:.4f}" if row.alpha == row.alpha else ""
        figures = (row.sigma_x, row.sigma_y, row.l1_residual, row.l2_residual)
        sigma_x, sigma_y, first, second = (f"{figure:.4f}" for figure in figures)
        table.add_row(
            row.name, row.operator, sigma_x, sigma_y, alpha, first, second, row.at_boundary
        )
    print_table(table)
    say("ℓ1, ℓ2: distance of the model from the normalised filter; σ in taps")


def _draw(fitted: Fit, names: tuple[str, ...]) -> Figure:
    """Pairs of learned filter and model, each pair in one colour range with 0 in the middle."""
    import numpy as np
    from matplotlib.figure import Figure

    count = len(fitted.table)
    across = min(4, count)
    down = -(-count // across)
    figure = Figure(figsize=(3.1 * across + 0.3, 2.15 * down + 0.3), layout="constrained")
    grid = figure.add_gridspec(down, across, wspace=0.12, hspace=0.08)
    for i, row in enumerate(fitted.table.itertuples()):
        learned, model = figure.add_subfigure(grid[i // across, i % across]).subplots(1, 2)
        pair = (fitted.normalized[i], fitted.models[i])
        limit = np.abs(pair).max()
        for axes, filters, title in zip(
            (learned, model), pair, (names[i], row.operator), strict=True
        ):
            axes.imshow(filters, cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes.set_title(title, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
        learned.set_xlabel(f"normalised, |f| ≤ {limit:.2g}", fontsize=7)
        scales = f"σ {row.sigma_x:.2f}, {row.sigma_y:.2f}"
        if row.alpha == row.alpha:
            scales = f"σ {row.sigma_x:.2f}, α {row.alpha:.2f}"
        model.set_xlabel(scales + (" *" if row.at_boundary else ""), fontsize=7)
    if fitted.table["at_boundary"].any():
        figure.supxlabel("* a parameter ended at an end of its range", fontsize=7)
    return figure
