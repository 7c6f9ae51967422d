"""Merged models on their way to disk: written in parts, complete or not there."""

from .journal import Journal
from .plan import OutputPlan, PlannedFile, plan_output
from .writer import CheckpointWriter

__all__ = ["CheckpointWriter", "Journal", "OutputPlan", "PlannedFile", "plan_output"]
