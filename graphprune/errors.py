"""Errors of the public interface; they are defined beside the passes, the lowest layer that raises them."""

from graphprune.passes.errors import (
    BudgetError,
    CaptureError,
    DataError,
    GraphPruneError,
    MissedBudgetError,
    ModelLoadError,
    OutputExistsError,
    PlanError,
    RuleError,
    TrainingError,
    UnfinishedError,
    UnsupportedModelError,
    UsageError,
    VerificationError,
)

__all__ = [
    "BudgetError",
    "CaptureError",
    "DataError",
    "GraphPruneError",
    "MissedBudgetError",
    "ModelLoadError",
    "OutputExistsError",
    "PlanError",
    "RuleError",
    "TrainingError",
    "UnfinishedError",
    "UnsupportedModelError",
    "UsageError",
    "VerificationError",
]
