"""The figures of the five papers, the command that measures each here, and what it needs."""

from keyfilters.reproduction.figures import Figure, Inputs
from keyfilters.reproduction.papers import PAPERS, Reproduction, list_figures, reproduce

__all__ = ["PAPERS", "Figure", "Inputs", "Reproduction", "list_figures", "reproduce"]
