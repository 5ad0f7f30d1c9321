"""`easd tune`: finds the best rule for a pair from reference texts, without decoding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from easd.cli.options import OUTPUT
from easd.cli.references import ReferenceOptions
from easd.diagnose.tuned_file import forecast_speeds, leave_to_tuning, tuned_file
from easd.diagnose.tuning import Tuning, tune
from easd.diagnose.tuning_pass import read
from easd.diagnose.tuning_printing import answer, render
from easd.errors import visible


def command(
    *,
    given: ReferenceOptions,
    out: Annotated[Path, Parameter(group=OUTPUT)] = Path("tuned.json"),
) -> None:
    """Find the best rule for a pair: the pool, EASD, or the target at its best temperature.

    Both models read written solutions once. Temperatures, powers, plausibility and the gate are
    fitted on some of the texts and judged on the others. The file says which rule to use, at which
    temperature, for --calibration.

    Args:
        out: The file to write.
    """
    leave_to_tuning(given.decoding or {})
    study, task, pair = given.load()
    found = tune(
        given.read(read, study, task, pair),
        gamma=study.base.settings.fixed_gamma,
        unique_solution=task.unique_solution,
    )
    speeds = forecast_speeds(found, pair)
    tuned_file(found, speeds, pair, study.base.settings, task).save(out)
    if given.as_json:
        print(json.dumps({**found.to_dict(), "speeds": speeds}, indent=2))
    else:
        show_tuning(found, speeds, quiet=given.quiet)
    chosen = found.chosen
    at = f"temperature {chosen.temperature:g}"
    line = f"{out} holds {chosen.rule['name']} at {at}; use it with --calibration {out}"
    given.console.print(Text(visible(line)), soft_wrap=True)


def show_tuning(found: Tuning, speeds: Mapping[str, float], *, quiet: bool) -> None:
    """Prints what tuning found; if quiet, only the answer."""
    if not quiet:
        render(found, speeds, Console())
        return
    for line in answer(found, speeds):
        print(visible(line))
