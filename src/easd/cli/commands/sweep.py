"""`easd sweep --replay`: how often the gate would open, from recorded tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from easd.diagnose.calibration import firing_grid, signals
from easd.errors import InputError
from easd.runs import open_run

_LOSSLESS = ("calibration", "speculative")


def show_replay(folder: Path, tau_h: Sequence[float], tau_o: Sequence[float]) -> None:
    """Prints the gate's opening rate for every pair of thresholds.

    Raises:
        EasdError: The folder is no run, or recorded no tokens of a lossless system.
    """
    run = open_run(folder, "evaluation")
    recorded = run.tokens["system"].cast(pa.string()).unique().to_pylist()
    system = next((name for name in _LOSSLESS if name in recorded), None)
    if system is None:
        raise InputError(
            f"{str(folder)!r} recorded tokens of {', '.join(recorded) or 'no system'}; a replay "
            f"needs those of {' or '.join(_LOSSLESS)}, so evaluate one of them with trace > 0"
        )
    tokens = run.tokens.filter(pc.field("system").cast(pa.string()) == system)
    found = signals(tokens)
    grid = firing_grid(found, tau_h, tau_o).pivot(index="tau_h", columns="tau_o", values="rate")
    table = Table("tau_h", *(f"tau_o {o:g}" for o in grid.columns))
    table.title = f"gate open, replayed from {len(found.text):,} positions of {system}"
    for height, rates in grid.iterrows():
        table.add_row(f"{height:g} nats", *(f"{rate:.3%}" for rate in rates))
    Console().print(table)
