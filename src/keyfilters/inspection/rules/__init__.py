"""The rules of `check`, a file a subject; a new rule is one entry in one of them."""

from __future__ import annotations

from keyfilters.inspection.rules import defects, duplicates, geometry, norms, precision, untrained
from keyfilters.inspection.rules.rule import Measured, Rule

__all__ = ["RULES", "Measured", "Rule"]

RULES: dict[str, Rule] = {
    rule.name: rule
    for subject in (defects, duplicates, untrained, norms, geometry, precision)
    for rule in subject.RULES
}
