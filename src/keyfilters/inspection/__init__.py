"""Looking after a model in daily work: check its health, compare two, watch a training run."""

from keyfilters.inspection.check import Check, check
from keyfilters.inspection.compare import compare
from keyfilters.inspection.comparison import Comparison
from keyfilters.inspection.rules import RULES, Rule

__all__ = ["RULES", "Check", "Comparison", "Rule", "check", "compare"]
