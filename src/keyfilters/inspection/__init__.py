"""Looking after a model in daily work: check its health, compare two, watch a training run."""

from keyfilters.inspection.adapters import (
    TensorBoardLog,
    TrackerImages,
    TrainMonitor,
    WandbLog,
    lightning_callback,
    transformers_callback,
)
from keyfilters.inspection.check import Check, check
from keyfilters.inspection.compare import compare
from keyfilters.inspection.comparison import Comparison
from keyfilters.inspection.monitor import Monitor
from keyfilters.inspection.rules import RULES, Rule

__all__ = [
    "RULES",
    "Check",
    "Comparison",
    "Monitor",
    "Rule",
    "TensorBoardLog",
    "TrackerImages",
    "TrainMonitor",
    "WandbLog",
    "check",
    "compare",
    "lightning_callback",
    "transformers_callback",
]
