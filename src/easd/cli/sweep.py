"""`easd sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from easd.cli.grid_options import GridOptions, Out
from easd.cli.options import OUTPUT, RULE, Config
from easd.diagnose.calibration import firing_grid, signals
from easd.diagnose.calibration_file import read_calibration
from easd.errors import ConfigError, InputError
from easd.evaluate import presets
from easd.runs import open_run

_LOSSLESS = ("calibration", "speculative")


def command(
    config: Config = None,
    /,
    *,
    asked: GridOptions | None = None,
    tau_h: Annotated[
        list[float] | None,
        Parameter(group=RULE, show_default="1.5 2.0 2.5, or 0.75, 1, 1.25 times the calibration's"),
    ] = None,
    tau_o: Annotated[list[float] | None, Parameter(group=RULE, show_default="0.6 0.8 1.0")] = None,
    replay: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    out: Out = Path("runs/sweep"),
) -> None:
    """Try thresholds: accuracies by decoding with every pair of them, or firing rates by replay.

    Args:
        tau_h: Entropy threshold in nats; may be repeated.
        tau_o: Overlap threshold; may be repeated.
        replay: Decode nothing, and print how often the gate would open on this run's tokens.
    """
    asked = asked or GridOptions()
    centre = _centre(asked.calibration) if asked.calibration else None
    around = presets.around(centre) if centre else None
    grid_h = tau_h or around or presets.SWEEP_TAU_H
    grid_o = tau_o or presets.SWEEP_TAU_O
    if replay is not None:
        show_replay(replay, grid_h, grid_o)
        return
    asked.run(config, out, {"systems": presets.sweep(grid_h, grid_o, {})})


def _centre(calibration: Path) -> float:
    fields = read_calibration(calibration).fields
    if "tau_h" not in fields:
        raise ConfigError(
            f"{str(calibration)!r} holds no tau_h to try thresholds around: the rule that it found "
            f"is {fields.get('name')}; give a file of `easd calibrate`"
        )
    return fields["tau_h"]


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
