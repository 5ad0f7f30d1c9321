"""What a pair of models would do on a machine: bytes and arithmetic of a step, by hand."""

from easd.speed.plan.acceptance import Acceptance
from easd.speed.plan.hardware import HARDWARE, Hardware, parse_hardware
from easd.speed.plan.measure import measure_here
from easd.speed.plan.plan import Cell, plan
from easd.speed.plan.shapes import Shape
from easd.speed.plan.steps import Machine

__all__ = [
    "HARDWARE",
    "Acceptance",
    "Cell",
    "Hardware",
    "Machine",
    "Shape",
    "measure_here",
    "parse_hardware",
    "plan",
]
