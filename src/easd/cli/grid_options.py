"""Options, loading and a progress bar, shared by commands that decode tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from easd.cli.options import (
    DECODING,
    GRID,
    OUTPUT,
    CalibrationOption,
    Flag,
    Force,
    ModelOptions,
    Options,
    Quiet,
    fields_of,
    options,
)
from easd.cli.run_summary import say_failures, shown_text, summarise
from easd.config import parse_override
from easd.diagnose.calibration_file import CalibrationFile, read_calibration
from easd.engine.pair import Pair, fingerprints
from easd.engine.settings import Settings
from easd.errors import ConfigError, visible
from easd.evaluate.config import StudyConfig, read_study
from easd.evaluate.endpoint.evaluate import EndpointEvaluation
from easd.evaluate.endpoint.settings import EndpointStudy
from easd.evaluate.engine import Evaluation
from easd.evaluate.grid import Grid, parse_task
from easd.evaluate.runner import GridRun, Progress
from easd.pairs.from_config import load_with_status
from easd.runs import open_run
from easd.tasks import Task

# Systems have rules, and a grid has seeds.
_NOT_SHARED = ("rule", "n", "seed")
_DEFAULTS = {"max_new_tokens": "the task's", "batch_size": "16", "coupling": "shared"}

if TYPE_CHECKING:
    SharedDecoding = Options
else:
    SharedDecoding = options(fields_of(Settings, without=_NOT_SHARED), DECODING, _DEFAULTS)

OfGrid = partial(Parameter, group=GRID)

TASK_METAVAR = "NAME[:COUNT|:FIRST-END]"
TaskNames = Annotated[
    list[str] | None,
    OfGrid(
        name="--task",
        metavar=TASK_METAVAR,
        help="A task, its first items as name:count, or a slice as name:500-700, counted from 0 "
        "and without the 700th; see `easd tasks`. May be repeated.",
    ),
]
Data = Annotated[
    Path | None,
    OfGrid(
        show_default="EASD_DATA, or the hub",
        help="A file of items, or a folder with one file per task.",
    ),
]
Seeds = Annotated[
    list[int] | None,
    OfGrid(
        name="--seed",
        metavar="INT",
        show_default="0",
        help="Decode every item once with this seed; may be repeated.",
    ),
]
Out = Annotated[
    Path, Parameter(group=OUTPUT, help="Folder of the run; a run that was stopped continues.")
]
AllowCode = Annotated[
    bool,
    Flag(group=GRID, help="Run code that models wrote, in a sandbox; programming tasks need it."),
]
SetValue = Annotated[
    list[str] | None,
    OfGrid(
        name="--set",
        metavar="NAME=VALUE",
        help="Any setting of the config file, as name=value (coupling=maximal, trace=500, "
        "chunk=32, baselines=false, ...); may be repeated.",
    ),
]


def settings(
    *given: Options,
    task: Iterable[str] | None = None,
    data: Path | None = None,
    seed: Iterable[int] | None = None,
    set_: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Returns options by their names in a config file."""
    found = {name: value for each in given for name, value in (each or {}).items()}
    if task:
        found["tasks"] = [_task(spec, data) for spec in task]
    if seed:
        found["seeds"] = list(seed)
    return found | dict(parse_override(text) for text in set_ or ())


def _task(spec: str, data: Path | None) -> dict[str, Any]:
    task = parse_task(spec).to_dict()
    return task if data is None else {**task, "data": str(data)}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """Options of commands that decode a grid of tasks and systems."""

    models: ModelOptions = None
    task: TaskNames = None
    data: Data = None
    seed: Seeds = None
    set_: SetValue = None
    allow_code_execution: AllowCode = False
    calibration: CalibrationOption = None
    force: Force = False
    decoding: SharedDecoding = None
    quiet: Quiet = False

    def run(
        self,
        config: Path | None,
        out: Path,
        given: Mapping[str, Any],
        then: Callable[[], list[Any]] | None = None,
    ) -> None:
        """Decodes missing texts of a grid, by a pair or a server, and prints the accuracies.

        Args:
            config: a YAML file, over which these options take precedence.
            out: folder of the run.
            given: settings that take precedence over the options.
            then: returns the systems of a second round, once the first is decoded.

        Raises:
            EasdError: Models, tasks, settings or the folder cannot be used; finished texts stay.
        """
        asked = settings(
            *(self.models, self.decoding),
            task=self.task,
            data=self.data,
            seed=self.seed,
            set_=self.set_,
        )
        calibrated = read_calibration(self.calibration) if self.calibration else None
        fill = calibrated.fill if calibrated else dict
        values = read_study(config, {**asked, **given})
        if calibrated:
            values = {**calibrated.decoding, **values}
            if "name" in calibrated.fields:
                tuned = str(calibrated.fields["name"])
                values.setdefault("systems", list(dict.fromkeys(["target", "speculative", tuned])))
        console = Console(stderr=True, quiet=self.quiet)
        if "endpoint" in values and then is None:
            _check_endpoint(calibrated, self.force)
            decode_there(
                *(values, out, console, calibrated), allow_code_execution=self.allow_code_execution
            )
        else:
            study = StudyConfig.from_dict(values, fill=fill)
            tasks = load_tasks(study, console, allow_code_execution=self.allow_code_execution)
            pair = load_with_status(study.base, console)
            if calibrated is not None and not self.force:
                calibrated.check(fingerprints(pair), study.base.settings)
                _check_overlap(calibrated, tasks)
            decode_here(values, pair, tasks, out, console, calibrated, then)
        finished = open_run(out, "evaluation")
        summarise(finished, console)
        console.print(shown_text(f"the run is in {out}; next: easd report {out}"), soft_wrap=True)
        say_failures(finished, console)


def decode_here(
    values: Mapping[str, Any],
    pair: Pair,
    tasks: Sequence[Task],
    out: Path,
    console: Console,
    calibrated: CalibrationFile | None = None,
    then: Callable[[], list[Any]] | None = None,
) -> None:
    """Decodes missing texts of a grid with a loaded pair; see `GridOptions.run`."""
    fill = calibrated.fill if calibrated else dict
    fitted = calibrated and calibrated.fitted_on(tasks)
    study = StudyConfig.from_dict(values, fill=fill)
    watch(Evaluation(study, pair, tasks, out, fitted), console)
    if then is not None:
        study = StudyConfig.from_dict({**values, "systems": then()}, fill=fill)
        watch(Evaluation(study, pair, tasks, out, fitted), console)


def decode_there(
    values: Mapping[str, Any],
    out: Path,
    console: Console,
    calibrated: CalibrationFile | None = None,
    *,
    allow_code_execution: bool = False,
) -> None:
    """Decodes missing texts of a grid on servers; see `GridOptions.run`."""
    fill = calibrated.fill if calibrated else dict
    study = EndpointStudy.from_dict(values, fill=fill)
    tasks = load_tasks(study, console, allow_code_execution=allow_code_execution)
    with console.status("asking the server"):
        evaluation = EndpointEvaluation(
            *(study, tasks, out),
            on_wait=lambda why: console.print(shown_text(why, "yellow"), soft_wrap=True),
            fitted=calibrated and calibrated.fitted_on(tasks),
        )
    watch(evaluation, console)


def _check_overlap(calibrated: CalibrationFile, tasks: Sequence[Task]) -> None:
    """Refuses to judge a tuned rule on the items it was tuned on."""
    for task, shared in calibrated.fitted_on(tasks)["overlap"].items():
        if calibrated.kind == "tuning" and shared:
            raise ConfigError(
                f"the rule was tuned on {shared:,} of these items of {task}, on which it looks "
                f"better than it is; judge it on others, such as --task {task}:FIRST-END, or add "
                "--force"
            )


def _check_endpoint(calibrated: CalibrationFile | None, force: bool) -> None:
    if calibrated is not None and not force:
        raise ConfigError(
            "a calibration is checked against the pair's weights, which an endpoint does not "
            "reveal; add --force if it is of the same pair and temperature"
        )


def load_tasks(
    config: Grid[Any], console: Console, *, allow_code_execution: bool = False
) -> list[Task]:
    """Loads every task and prints which rows were skipped."""
    tasks = []
    for spec in config.tasks:
        with console.status(f"loading {spec.name}"):
            task = spec.load(allow_code_execution=allow_code_execution)
        for line in task.skipped:
            console.print(shown_text(f"skipped: {task.name}: {line}", "yellow"), soft_wrap=True)
        tasks.append(task)
    return tasks


def watch(evaluation: GridRun[Any], console: Console) -> None:
    """Runs an evaluation behind a progress bar."""
    tally: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    texts = tokens = 0
    seconds = 0.0
    total = len(evaluation.chunks())
    for line in evaluation.warnings():
        console.print(shown_text(f"warning: {line}", "yellow"), soft_wrap=True)
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or console.quiet,
    )
    with bar:
        task = bar.add_task("decoding", total=total, note="")

        def show(progress: Progress) -> None:
            nonlocal texts, tokens, seconds
            chunk = progress.chunk
            count = tally[chunk.task.name, chunk.system.name]
            count[0] += progress.correct
            count[1] += progress.texts
            texts += progress.texts
            tokens += progress.tokens
            seconds += progress.seconds
            note = visible(f"{chunk.task.name} · {chunk.system.name}")
            if count[1]:
                note += f" · {count[0] / count[1]:.1%} of {count[1]} right"
            if seconds:
                note += f" · {tokens / seconds:,.0f} tok/s"
            bar.update(task, completed=progress.done, note=note)

        evaluation.run(show)
    if not texts:
        console.print("nothing was left to decode")
