"""`easd diagnose`: reference texts in, a verdict out; nothing is decoded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow.parquet as pq
from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from easd.cli.options import OUTPUT, RULE, Options, fields_of, options
from easd.cli.references import ReferenceOptions
from easd.config import parse_rule
from easd.core.rules import EASD
from easd.diagnose.calibration_file import CalibrationFile, data_of, sampling
from easd.diagnose.diagnosis import AtThreshold, Diagnosis, diagnose
from easd.diagnose.printing import render, verdicts
from easd.diagnose.reference_pass import read_positions
from easd.engine.pair import Pair, fingerprints
from easd.errors import visible
from easd.evaluate.config import StudyConfig
from easd.runs.files import replace_file
from easd.tasks import Task

_RATES = (0.02, 0.005, 0.08)

if TYPE_CHECKING:
    ThresholdOptions = Options
else:
    ThresholdOptions = options(fields_of(EASD, "tau_h", "tau_o"), RULE)


def command(
    *,
    given: ReferenceOptions,
    thresholds: ThresholdOptions = None,
    rate: Annotated[
        list[float] | None, Parameter(group=RULE, show_default="0.02 0.005 0.08")
    ] = None,
    out: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    positions: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
) -> None:
    """Will EASD help on this pair, or another rule? Says so from reference text, without decoding.

    Both models read written solutions once. What every rule's law does to the right token where the
    gate is open is then known exactly.

    Args:
        rate: Also judge the threshold at which the gate opens at this share of positions; may be
            repeated. Without --tau-h, the first one's is what --out keeps.
        out: Write thresholds and the fitted pool here, for --calibration.
        positions: Write the table of positions here, as Parquet.
    """
    wanted = dict(thresholds or {})
    rule: Any = parse_rule({"name": "easd", **wanted})
    rates = rate or list(_RATES)
    study, task, pair = given.load()
    table = given.read(read_positions, study, task, pair)
    if positions is not None:
        replace_file(positions, lambda to: pq.write_table(table, to))
    found = diagnose(
        table,
        tau_h=rule.tau_h,
        tau_o=rule.tau_o,
        rates=sorted(rates),
        unique_solution=task.unique_solution,
    )
    # Files first: whoever reads the output may close it early.
    kept = None if out is None else _keep(found, out, wanted, rates, pair, study, task)
    if given.as_json:
        print(json.dumps(found.to_dict(), indent=2))
    elif given.quiet:
        verdicts(found, Console())
    else:
        render(found, Console())
    if kept is not None:
        fitted = "no pool: none could be fitted" if kept.pool.fallback else "the pool fitted there"
        line = f"{out} holds tau_h {kept.tau_h:.3g} and {fitted}; use it with --calibration {out}"
        given.console.print(Text(visible(line)), soft_wrap=True)


def _keep(
    found: Diagnosis,
    out: Path,
    given: Options,
    rates: Sequence[float],
    pair: Pair,
    study: StudyConfig,
    task: Task,
) -> AtThreshold:
    """Writes one threshold and its pool for --calibration; returns what was written."""
    # The threshold that was asked for, not the one that sounds best.
    wanted = None if "tau_h" in (given or {}) else rates[0]
    kept = next(each for each in found.thresholds if each.wanted == wanted)
    CalibrationFile(
        kind="diagnosis",
        fields={"tau_h": kept.tau_h, "tau_o": found.tau_o, "a": kept.pool.a, "b": kept.pool.b},
        pair=pair.name,
        fingerprints=fingerprints(pair),
        sampling=sampling(study.base.settings),
        data=[data_of(task)],
        estimates=found.to_dict(),
    ).save(out)
    return kept
