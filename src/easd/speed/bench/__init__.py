"""How fast every way to decode is, taken in turn on the same prompts of one machine."""

from easd.speed.bench.run import Bench, Cell, read_timings
from easd.speed.bench.systems import System, Timing
from easd.speed.bench.table import Line, lines

__all__ = ["Bench", "Cell", "Line", "System", "Timing", "lines", "read_timings"]
