"""`easd study`: tune on some items of a task, judge on the others, and report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from easd.cli import tune
from easd.cli.grid_options import (
    AllowCode,
    Data,
    GridOptions,
    OfGrid,
    SetValue,
    SharedDecoding,
    load_tasks,
    settings,
)
from easd.cli.options import OUTPUT, ModelOptions, Quiet
from easd.cli.references import ReferenceOptions
from easd.cli.run_summary import shown_text
from easd.diagnose.calibration_file import CalibrationFile, read_calibration
from easd.diagnose.tuning import TARGET
from easd.errors import ConfigError
from easd.evaluate.config import load_study
from easd.evaluate.grid import parse_task
from easd.report import write_report
from easd.runs import open_run

_ENOUGH_TO_TUNE = 200


def command(
    *what: Annotated[str, Parameter(name="[TARGET DRAFT] TASK")],
    models: ModelOptions = None,
    data: Data = None,
    set_: SetValue = None,
    tune_on: Annotated[
        int | None, OfGrid(show_default=f"a third of the items, at most {_ENOUGH_TO_TUNE}")
    ] = None,
    allow_code_execution: AllowCode = False,
    decoding: SharedDecoding = None,
    out: Annotated[Path, Parameter(group=OUTPUT)] = Path("runs/study"),
    quiet: Quiet = False,
) -> None:
    """Does any rule help this pair on this task? Tunes, decodes and reports.

    Temperatures, powers and gates are tuned on the first items of the task, from their written
    solutions. What was found then decodes the other items, beside EASD, lossless speculation, and
    the target at its best temperature and at 1. A study that was stopped continues.

    Args:
        what: Target and draft, a hub id or a folder each, unless there is --pair; and a task: its
            name, its first items as name:count, or a slice of it as name:500-700.
        tune_on: Number of items to tune on.
        out: Folder of the study: tuned.json, run/ and report/.
    """
    tune.check_free(decoding)
    if len(what) not in (1, 3):
        raise ConfigError(f"{len(what)} names were given; give target, draft and task, or a task")
    *own, task = what
    chosen = {**(models or {}), **dict(zip(("target", "draft"), own, strict=False))}
    console = Console(stderr=True, quiet=quiet)
    study = load_study(None, settings(chosen, decoding, task=[task], data=data, set_=set_))
    (loaded,) = load_tasks(study, console, allow_code_execution=allow_code_execution)
    count = len(loaded.items)
    fit = min(_ENOUGH_TO_TUNE, count // 3) if tune_on is None else tune_on
    if not 0 < fit < count:
        raise ConfigError(f"tune_on = {fit} of {count} items; use at least 1 and leave at least 1")
    name, first = (spec := parse_task(task)).name, spec.first

    out.mkdir(parents=True, exist_ok=True)
    tuned = out / "tuned.json"
    shared: dict[str, Any] = {
        "models": chosen,
        "data": data,
        "set_": set_,
        "decoding": decoding,
        "quiet": quiet,
    }
    if not tuned.exists():
        tune.command(
            given=ReferenceOptions(task=f"{name}:{first}-{first + fit}", **shared), out=tuned
        )
    found = read_calibration(tuned)
    if (used := sum(each["items"] for each in found.data)) != fit:
        raise ConfigError(f"{tuned} was tuned on {used} items, not {fit}; choose another --out")
    GridOptions(
        task=[f"{name}:{first + fit}-{first + count}"],
        calibration=tuned,
        allow_code_execution=allow_code_execution,
        **shared,
    ).run(None, out / "run", {"systems": systems(found), "baselines": False})
    page = write_report([open_run(out / "run", "evaluation")], out / "report", baseline=TARGET)
    console.print(shown_text(f"the report is {page}"), soft_wrap=True)


def systems(found: CalibrationFile) -> list[dict[str, Any]]:
    """Returns the systems that a study compares, from what tuning estimated.

    These are the target at its best temperature and at 1, lossless speculation at the former, and
    the best candidates of EASD and of the pool, whether or not tuning recommends them.
    """
    candidates = {each["name"]: each for each in found.estimates["candidates"]}
    best = {name: candidates[TARGET][name] for name in ("temperature", "draft_temperature")}
    compared = [
        {"name": TARGET, "rule": "target", "temperature": best["temperature"]},
        {"name": "speculative at its best", "rule": "speculative", **best},
        {"name": "target, T = 1", "rule": "target", "temperature": 1.0},
    ]
    for kind in ("easd", "pool"):
        own = [each for each in candidates.values() if each["rule"]["name"].startswith(kind)]
        highest = max(own, key=lambda each: each["right"]["value"])
        names = ("name", "rule", "temperature", "draft_temperature")
        compared.append({name: highest[name] for name in names})
    return compared
