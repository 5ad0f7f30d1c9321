"""`easd ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from easd.cli.options import (
    RULE,
    CalibrationOption,
    Force,
    ModelOptions,
    Options,
    Quiet,
    fields_of,
    options,
)
from easd.cli.study import (
    AllowCode,
    Config,
    Data,
    Out,
    Seeds,
    SetValue,
    SharedDecoding,
    TaskNames,
    run_grid,
    settings,
)
from easd.core.rules import EASD
from easd.evaluate.presets import ablation, matched_refusal
from easd.runs import open_run

# The systems differ in these, or the control does not have them.
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
    models: ModelOptions = None,
    task: TaskNames = None,
    data: Data = None,
    seed: Seeds = None,
    set_: SetValue = None,
    allow_code_execution: AllowCode = False,
    gate: GateOptions = None,
    calibration: CalibrationOption = None,
    force: Force = False,
    decoding: SharedDecoding = None,
    out: Out = Path("runs/ablation"),
    quiet: Quiet = False,
) -> None:
    """Take EASD apart: the paper's ablation, with random refusal at EASD's own rate as control."""
    fields = dict(gate or {})
    cells = ablation(fields)

    def with_control() -> list[Any]:
        return [*cells, matched_refusal(open_run(out, "evaluation"), fields)]

    given = settings(models, decoding, task=task, data=data, seed=seed, set_=set_)
    run_grid(
        *(config, given | {"systems": cells}, out),
        calibration=calibration,
        force=force,
        allow_code_execution=allow_code_execution,
        quiet=quiet,
        then=with_control,
    )
