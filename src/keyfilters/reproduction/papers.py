"""The five papers, and measuring what of them can be measured with what is at hand."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from keyfilters.errors import KeyFiltersError, NoFiltersError, SourceError, nearest
from keyfilters.reproduction import modelling, others, unveiling
from keyfilters.reproduction.figures import Figure, Inputs

__all__ = ["PAPERS", "Reproduction", "list_figures", "reproduce"]

# Short name -> figures, in the order of publication.
PAPERS: dict[str, list[Figure]] = {
    "unveiling": unveiling.FIGURES,
    "echos": others.ECHOS,
    "masterkey": others.MASTERKEY,
    "modelling": modelling.FIGURES,
    "quest": others.QUEST,
}


@dataclass(frozen=True, eq=False)
class Reproduction:
    """What was measured of one paper.

    Attributes:
        paper: its short name.
        figures: one row a figure: paper, figure, published, known from, command, state.
        rows: one row a measured number: figure, quantity, published, measured, difference (NaN
            where the paper gives no number), null (of the strictest null), note.
    """

    paper: str
    figures: pd.DataFrame
    rows: pd.DataFrame

    @property
    def digest(self) -> pd.DataFrame:
        """One row a figure: figure, published, state, numbers, largest difference."""
        groups = self.rows.groupby("figure")
        largest = groups["difference"].agg(lambda x: x.abs().max())
        table = self.figures[["figure", "published", "state"]]
        return table.assign(
            numbers=table["figure"].map(groups.size()).fillna(0).astype(int),
            **{"largest difference": table["figure"].map(largest)},
        )


def list_figures(inputs: Inputs | None = None) -> pd.DataFrame:
    """Return every figure of every paper that is known, and whether it can be measured now."""
    given = inputs or Inputs()
    return pd.DataFrame([f.as_dict(given) for figures in PAPERS.values() for f in figures])


def reproduce(paper: str, inputs: Inputs | None = None) -> Reproduction:
    """Measure the figures of one paper.

    A figure that needs what is not at hand is listed with what it needs; weights that cannot be
    read are such a need too.

    Args:
        paper: a name of `PAPERS`.
        inputs: what is at hand.

    Raises:
        KeyFiltersError: unknown paper, or the file of filters cannot be read.

    >>> row = reproduce("echos").rows.iloc[0]
    >>> print(f"{row.quantity}: {row.measured:.3f}, published {row.published}")
    centre tap, k = 7, γ = 1/3: 0.605, published 0.605
    """
    if paper not in PAPERS:
        tail = nearest(paper, PAPERS) or f"; expected one of {', '.join(PAPERS)}"
        raise KeyFiltersError(f"no paper is called {paper!r}{tail}")
    given = inputs or Inputs()
    figures, rows = [], []
    for figure in PAPERS[paper]:
        listed = dict(figure.as_dict(given))
        if figure.measure is not None and not figure.missing(given):
            try:
                found = figure.measure(given)
            except (NoFiltersError, SourceError) as error:
                listed["state"] = f"not measured: {error}"
            else:
                listed["state"] = "measured"
                rows += [{"figure": figure.name} | vars(row) for row in found]
        figures.append(listed)
    columns = ["figure", "quantity", "published", "measured", "null", "note"]
    table = pd.DataFrame(rows, columns=columns)
    numbers = pd.to_numeric(table["published"], errors="coerce")
    table.insert(4, "difference", table["measured"] - numbers)
    return Reproduction(paper, pd.DataFrame(figures), table)
