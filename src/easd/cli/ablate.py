"""`easd ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from easd.cli.grid_options import GridOptions, Out
from easd.cli.options import RULE, Config, Options, fields_of, options
from easd.core.rules import EASD
from easd.evaluate.presets import ablation, matched_refusal
from easd.runs import open_run

# Fields in which the systems differ, or which the control does not have.
_DECIDED = ("conditions", "redraw", "penalise", "gate_on", "entropy_of")

if TYPE_CHECKING:
    GateOptions = Options
else:
    GateOptions = options(
        fields_of(EASD, without=_DECIDED),
        RULE,
        {"tau_h": "1.5, or the calibration's"},
    )


def command(
    config: Config = None,
    /,
    *,
    asked: GridOptions | None = None,
    gate: GateOptions = None,
    out: Out = Path("runs/ablation"),
) -> None:
    """Run the paper's ablation of EASD, with random refusal at EASD's rate as control."""
    fields = dict(gate or {})
    cells = ablation(fields)

    def with_control() -> list[Any]:
        return [*cells, matched_refusal(open_run(out, "evaluation"), fields)]

    (asked or GridOptions()).run(config, out, {"systems": cells}, then=with_control)
