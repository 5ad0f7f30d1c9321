"""`easd calibrate`: finds thresholds on a validation set."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
from cyclopts import Parameter
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from easd.cli.grid_options import (
    Data,
    OfGrid,
    Seeds,
    SetValue,
    SharedDecoding,
    TaskNames,
    load_tasks,
    settings,
    watch,
)
from easd.cli.options import OUTPUT, RULE, Config, ModelOptions, Options, Quiet, fields_of, options
from easd.core.rules import EASD
from easd.diagnose.calibration import (
    SOURCES,
    Calibration,
    calibrate,
)
from easd.diagnose.calibration_file import CalibrationFile, data_of, sampling
from easd.diagnose.draft_temperature import DraftTemperatures, draft_temperatures
from easd.engine.pair import fingerprints
from easd.errors import ConfigError, visible
from easd.evaluate.config import StudyConfig, read_study
from easd.evaluate.engine import Evaluation
from easd.evaluate.grid import MOST
from easd.pairs.from_config import load_with_status
from easd.runs import open_run
from easd.stats import Estimate

# Other fields of the gate, for which a threshold holds.
_GATE = ("tau_o", "top_n", "entropy_of")

if TYPE_CHECKING:
    GateOptions = Options
else:
    GateOptions = options(fields_of(EASD, *_GATE), RULE)


def command(
    config: Config = None,
    /,
    *,
    models: ModelOptions = None,
    task: TaskNames = None,
    data: Data = None,
    seed: Seeds = None,
    set_: SetValue = None,
    source: Annotated[str, OfGrid(metavar="|".join(SOURCES))] = "pooled",
    rate: Annotated[float | None, OfGrid()] = None,
    gate: GateOptions = None,
    decoding: SharedDecoding = None,
    out: Annotated[Path, Parameter(group=OUTPUT)] = Path("calibration.json"),
    run: Annotated[
        Path | None,
        Parameter(group=OUTPUT, show_default="runs/calibration-, with pair, task and a hash"),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Find tau_h for a pair: the paper's mean of the top 5 % entropies, or a wanted firing rate.

    The file names the pair (by hash), the sampling settings and the data; `--calibration` refuses
    the file where they differ.

    Args:
        source: The entropies that the paper's rule takes.
        rate: Find the tau_h at which the gate opens at this share of positions, instead of the
            paper's rule.
        out: The file to write.
        run: Folder of the texts decoded for it; a run that was stopped continues.
    """
    if source not in SOURCES:
        raise ConfigError(f"source = {source!r} is not known; choose one of {', '.join(SOURCES)}")
    given = settings(models, decoding, task=task, data=data, seed=seed, set_=set_)
    study = calibration_config(read_study(config, given), dict(gate or {}))
    console = Console(stderr=True, quiet=quiet)
    tasks = load_tasks(study, console)
    pair = load_with_status(study.base, console)
    run = run or _folder_of(study, pair.name)
    evaluation = Evaluation(study, pair, tasks, run)
    watch(evaluation, console)
    decoded, tempered = open_run(run, "evaluation"), None
    if study.base.settings.temperature and pair.draft is not None:
        tempered = _draft_temperatures(evaluation, decoded.samples, console)
    rule: Any = study.systems[0].settings.rule
    found = calibrate(decoded.tokens, tau_o=rule.tau_o, top_n=rule.top_n, source=source, rate=rate)
    calibration_file(found, evaluation, source=source, rate=rate, tempered=tempered).save(out)
    _show(console, found)
    if tempered is not None:
        _show_draft_temperatures(console, tempered)
    for line in found.warnings:
        console.print(Text(f"warning: {line}", "yellow"), soft_wrap=True)
    line = f"written to {out} from the texts in {run}; use it with --calibration {out}"
    console.print(Text(visible(line)), soft_wrap=True)


def calibration_file(
    found: Calibration,
    evaluation: Evaluation,
    *,
    source: str = "pooled",
    rate: float | None = None,
    tempered: DraftTemperatures | None = None,
) -> CalibrationFile:
    """Returns the file of a calibration, from the evaluation whose texts it read."""
    settings = evaluation.config.systems[0].settings
    return CalibrationFile(
        kind="calibration",
        fields={
            "tau_h": found.tau_h.value,
            **{name: getattr(settings.rule, name) for name in _GATE},
        },
        pair=evaluation.pair.name,
        fingerprints=fingerprints(evaluation.pair),
        sampling=sampling(settings),
        data=[data_of(task) for task in evaluation.tasks],
        estimates={
            "method": "mean of the top 5 % entropies" if rate is None else "firing rate",
            "source": source if rate is None else None,
            "wanted_rate": rate,
            "tau_h": asdict(found.tau_h),
            "paper_rule": {name: asdict(value) for name, value in found.by_source.items()},
            "rates": {name: asdict(value) for name, value in found.rates.items()},
            "texts": found.texts,
            "positions": found.positions,
            "warnings": found.warnings,
            "draft_temperature": None if tempered is None else tempered.to_dict(),
        },
    )


def _draft_temperatures(
    evaluation: Evaluation, samples: pa.Table, console: Console
) -> DraftTemperatures:
    """Returns acceptance rates by draft temperature on the decoded texts."""
    texts = evaluation.decoded_texts(samples)
    with Progress(console=console, transient=True) as bar:
        reading = bar.add_task("reading the texts with both models", total=None)
        return draft_temperatures(
            evaluation.pair,
            texts,
            evaluation.config.base.settings,
            lambda done, total: bar.update(reading, completed=done, total=total),
        )


def _show_draft_temperatures(console: Console, found: DraftTemperatures) -> None:
    table = Table("draft temperature", "accepted", "95 % interval", title="drafting")
    for temperature, value in zip(found.temperatures, found.acceptance, strict=True):
        style = "bold" if temperature == found.best.value else None
        interval = f"{value.low:.3f} to {value.high:.3f}"
        table.add_row(f"{temperature:g}", f"{value.value:.3f}", interval, style=style)
    console.print(table)
    line = (
        f"best draft temperature {found.best.value:g} ({found.best.low:g} to {found.best.high:g}): "
        f"{found.gain.value:+.3f} ({found.gain.low:+.3f} to {found.gain.high:+.3f}) against the "
        "target's; the law of texts stays the same"
    )
    console.print(Text(line), soft_wrap=True)


def _folder_of(study: StudyConfig, pair: str) -> Path:
    """Returns a folder for this pair, these tasks and these settings only."""
    what = [study.to_dict(), [system.to_dict() for system in study.systems]]
    digest = hashlib.blake2b(json.dumps(what, default=str).encode(), digest_size=4).hexdigest()
    names = "-".join([pair, *(task.name for task in study.tasks)])
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", names).strip("-.")[:80]
    return Path("runs") / f"calibration-{plain}-{digest}"


def _show(console: Console, found: Calibration) -> None:
    table = Table("estimate", "value", "95 % interval", title="calibration")
    for source, value in found.by_source.items():
        table.add_row(f"mean of the top 5 %, {source}", *_nats(value))
    table.add_section()
    table.add_row("tau_h chosen", *_nats(found.tau_h))
    for name, value in found.rates.items():
        label = "gate open" if name == "gate" else f"{name.replace('_', ' ')} met"
        table.add_row(label, f"{value.value:.3%}", f"{value.low:.3%} to {value.high:.3%}")
    table.caption = f"{found.positions:,} positions of {found.texts:,} texts"
    console.print(table)


def _nats(value: Estimate) -> tuple[str, str]:
    return f"{value.value:.3f} nats", f"{value.low:.3f} to {value.high:.3f}"


def calibration_config(values: dict[str, Any], gate: dict[str, Any]) -> StudyConfig:
    """Returns a lossless study that drafts at every position and records every token.

    Args:
        values: models, tasks and settings, as in an evaluation.
        gate: tau_o, top_n and entropy_of of the rule to calibrate.
    """
    lossless = {"tau_h": math.inf, "draft_at_bonus": True}
    system = {"name": "calibration", "rule": {"name": "easd", **gate, **lossless}}
    grid = {"systems": [system], "baselines": False, "trace": MOST}
    return StudyConfig.from_dict({**values, **grid})
