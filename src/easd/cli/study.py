"""`easd study`: tune on some items of a task, judge on the others, and report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from easd.cli.grid_options import (
    AllowCode,
    Data,
    OfGrid,
    SetValue,
    SharedDecoding,
    load_tasks,
    settings,
    watch,
)
from easd.cli.options import OUTPUT, ModelOptions, Quiet
from easd.cli.references import reading_bar, say_skipped
from easd.cli.run_summary import say_failures, shown_text, summarise
from easd.cli.tune import show_tuning
from easd.errors import ConfigError
from easd.evaluate.config import StudyConfig, read_study
from easd.evaluate.grid import whole
from easd.pairs.from_config import load_with_status
from easd.runs import open_run
from easd.study import ENOUGH_TO_TUNE, Study, check

_YAML = (".yaml", ".yml")


def command(
    *what: Annotated[str, Parameter(name="[TARGET DRAFT] TASK")],
    models: ModelOptions = None,
    data: Data = None,
    set_: SetValue = None,
    tune_on: Annotated[
        int | None, OfGrid(show_default=f"a third of the items, at most {ENOUGH_TO_TUNE}")
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
            name, its first items as name:count, or a slice of it as name:500-700. Or a YAML file
            with models, one task, and any settings.
        tune_on: Number of items to tune on.
        out: Folder of the study: tuned.json, run/ and report/.
    """
    if len(what) not in (1, 3):
        raise ConfigError(f"{len(what)} names were given; give target, draft and task, or a task")
    *own, task = what
    config = Path(task) if task.endswith(_YAML) else None
    if config is not None and data is not None:
        raise ConfigError(f"data belongs to a task; write it into {str(config)!r}, under tasks")
    chosen = {**(models or {}), **dict(zip(("target", "draft"), own, strict=False))}
    given = settings(*(chosen, decoding), task=None if config else [task], data=data, set_=set_)
    values = read_study(config, given)
    if "tune_on" in values:
        of_file = whole(values.pop("tune_on"), "tune_on")
        tune_on = of_file if tune_on is None else tune_on
    console = Console(stderr=True, quiet=quiet)
    first = StudyConfig.from_dict(values)
    if len(first.tasks) != 1:
        raise ConfigError(f"a study has one task, and {str(config)!r} has {len(first.tasks)}")
    (loaded,) = load_tasks(first, console, allow_code_execution=allow_code_execution)
    tune_on = check(values, loaded, tune_on)
    pair = load_with_status(first.base, console)
    study = Study(pair=pair, task=loaded, tune_on=tune_on, out=out, values=values)
    if not study.is_tuned:
        say_skipped(study.tuned_on, console)
        with reading_bar(console) as on_step:
            found, speeds = study.tune(on_step)
        show_tuning(found, speeds, quiet=quiet)
    watch(study.evaluation(), console)
    run = open_run(out / "run", "evaluation")
    summarise(run, console)
    console.print(shown_text(f"the report is {study.report()}"), soft_wrap=True)
    say_failures(run, console)
