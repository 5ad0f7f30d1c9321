"""What a pair of models would do on a machine: bytes and arithmetic of a step, by hand."""

from easd.planning.acceptance import Acceptance
from easd.planning.hardware import HARDWARE, Hardware, parse_hardware
from easd.planning.measure import measure_here
from easd.planning.plan import Cell, plan
from easd.planning.shapes import Shape
from easd.planning.steps import Machine

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
