"""Interleaved benchmarks of every way to decode."""

from easd.speed.bench.results import Line, lines
from easd.speed.bench.run import Bench, Cell, read_timings
from easd.speed.bench.systems import System, Timing

__all__ = ["Bench", "Cell", "Line", "System", "Timing", "lines", "read_timings"]
