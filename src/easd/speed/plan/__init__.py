"""Forecasts of a pair's speed on a machine, from the bytes and arithmetic of a step."""

from easd.speed.plan.cost_model import CostModel, Shape
from easd.speed.plan.forecast import Acceptance, Forecast, plan
from easd.speed.plan.hardware import HARDWARE, Hardware, parse_hardware
from easd.speed.plan.measure import measure_here

__all__ = [
    "HARDWARE",
    "Acceptance",
    "CostModel",
    "Forecast",
    "Hardware",
    "Shape",
    "measure_here",
    "parse_hardware",
    "plan",
]
