"""Figures and the page: showing what the atlas found, without computing science."""

from keyfilters.report.page import write_report

__all__ = ["write_report"]
