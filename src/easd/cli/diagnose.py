"""`easd diagnose`: reference texts in, a verdict out; nothing is decoded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow.parquet as pq
from cyclopts import Parameter
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from easd.cli.options import GRID, OUTPUT, RULE, ModelOptions, Options, Quiet, fields_of, options
from easd.cli.study import Data, SetValue, SharedDecoding, load_tasks, settings
from easd.config import parse_rule
from easd.core.rules import EASD
from easd.diagnose.calibration_file import CalibrationFile, data_of, sampling
from easd.diagnose.diagnosis import AtThreshold, Diagnosis, diagnose
from easd.diagnose.printing import render, verdicts
from easd.diagnose.reference_pass import ReferenceText, read_positions
from easd.engine.pair import Pair, fingerprints
from easd.errors import InputError, visible
from easd.evaluate.config import StudyConfig, load_study
from easd.evaluate.prompting import encode_item
from easd.pairs.from_config import load_with_status
from easd.runs.files import replace_file
from easd.tasks import Task

_RATES = (0.02, 0.005, 0.08)

if TYPE_CHECKING:
    ThresholdOptions = Options
else:
    ThresholdOptions = options(fields_of(EASD, "tau_h", "tau_o"), RULE)


def command(
    *,
    models: ModelOptions = None,
    task: Annotated[str, Parameter(group=GRID, metavar="NAME[:COUNT|:FIRST-END]")],
    data: Data = None,
    set_: SetValue = None,
    thresholds: ThresholdOptions = None,
    rate: Annotated[
        list[float] | None, Parameter(group=RULE, show_default="0.02 0.005 0.08")
    ] = None,
    decoding: SharedDecoding = None,
    out: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    positions: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", group=OUTPUT, negative=(), show_default=False)
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Will EASD help on this pair, or another rule? Says so from reference text, without decoding.

    Both models read written solutions once. What every rule's law does to the right token where the
    gate is open is then known exactly.

    Args:
        task: A task with written solutions, the first items of one as name:count, or a slice of it
            as name:500-700; or `file` with --data.
        rate: Also judge the threshold at which the gate opens at this share of positions; may be
            repeated. Without --tau-h, the first one's is what --out keeps.
        out: Write thresholds and the fitted pool here, for --calibration.
        positions: Write the table of positions here, as Parquet.
        as_json: Print everything as JSON.
    """
    given = dict(thresholds or {})
    rule: Any = parse_rule({"name": "easd", **given})
    rates = rate or list(_RATES)
    study = load_study(None, settings(models, decoding, task=[task], data=data, set_=set_))
    console = Console(stderr=True, quiet=quiet)
    (loaded,) = load_tasks(study, console)
    pair = load_with_status(study.base, console)
    texts = references(loaded, pair, study, console)
    with Progress(console=console, transient=True) as bar:
        reading = bar.add_task("reading the references with both models", total=None)
        table = read_positions(
            pair,
            texts,
            study.base.settings,
            lambda done, total: bar.update(reading, completed=done, total=total),
        )
    if positions is not None:
        replace_file(positions, lambda to: pq.write_table(table, to))
    found = diagnose(
        table,
        tau_h=rule.tau_h,
        tau_o=rule.tau_o,
        rates=sorted(rates),
        unique_solution=loaded.unique_solution,
    )
    # Files first: whoever reads the output may close it early.
    kept = None if out is None else _keep(found, out, given, rates, pair, study, loaded)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    elif quiet:
        verdicts(found, Console())
    else:
        render(found, Console())
    if kept is not None:
        fitted = "no pool: none could be fitted" if kept.pool.fallback else "the pool fitted there"
        line = f"{out} holds tau_h {kept.tau_h:.3g} and {fitted}; use it with --calibration {out}"
        console.print(Text(visible(line)), soft_wrap=True)


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


def references(
    task: Task, pair: Pair, config: StudyConfig, console: Console
) -> list[ReferenceText]:
    """Prompt and gold solution of every item that has one, as token ids.

    Raises:
        InputError: No item has a reference.
    """
    tokenizer = pair.tokenizer
    found: list[ReferenceText] = []
    for item in task.items:
        if item.reference is None:
            continue
        prompt = encode_item(item, task, tokenizer, config.base.chat)
        ids: Any = tokenizer(item.reference, add_special_tokens=False)["input_ids"]
        end: Any = tokenizer.eos_token_id
        found.append((prompt, [*ids, end], item.id))
    missing = len(task.items) - len(found)
    if not found:
        raise InputError(
            f"no item of {task.name} has a written solution to read; use a task that has "
            "(gsm8k, math500, lab-a, ...) or a file with 'solution'"
        )
    if missing:
        console.print(Text(f"skipped: {missing} items of {task.name} without a solution", "yellow"))
    return found
