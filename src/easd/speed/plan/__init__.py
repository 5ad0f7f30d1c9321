"""Forecasts of a pair's speed on a machine, from the bytes and arithmetic of a step."""

from easd.speed.plan.cost_model import CostModel, Shape
from easd.speed.plan.forecast import Acceptance, Forecast, plan
from easd.speed.plan.grid import Decoding, TaskSize, devices_for, most_hours
from easd.speed.plan.hardware import HARDWARE, Hardware, parse_hardware
from easd.speed.plan.measure import measure_here

__all__ = [
    "HARDWARE",
    "Acceptance",
    "CostModel",
    "Decoding",
    "Forecast",
    "Hardware",
    "Shape",
    "TaskSize",
    "devices_for",
    "measure_here",
    "most_hours",
    "parse_hardware",
    "plan",
]
