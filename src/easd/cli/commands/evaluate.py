"""`easd eval`, `ablate` and `sweep`: a grid in, a run folder out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from easd.diagnose.calibration_file import CalibrationFile
from easd.engine.pair import fingerprints
from easd.evaluate.config import StudyConfig
from easd.evaluate.engine import Evaluation
from easd.evaluate.grid import Grid
from easd.evaluate.runner import GridRun, Progress
from easd.pairs.from_config import load_with_status
from easd.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One `easd eval`, `ablate` or `sweep`: a grid, where it goes, and how loud to be.

    Attributes:
        config: the grid.
        out: folder of the run.
        allow_code_execution: whether tasks may run code that a model wrote.
        artefact: a calibration whose fields the systems were filled with.
        force: use it for another pair or other settings too.
        quiet: print nothing but errors.
        then: makes a further grid, once this one is decoded, for the same models and tasks.
    """

    config: StudyConfig
    out: Path
    allow_code_execution: bool = False
    artefact: CalibrationFile | None = None
    force: bool = False
    quiet: bool = False
    then: Callable[[], StudyConfig] | None = None

    def run(self) -> None:
        """Decodes what is missing and prints the accuracies.

        Raises:
            EasdError: Models, tasks, settings or the folder do not do; what is finished stays.
        """
        console = Console(stderr=True, quiet=self.quiet)
        tasks = load_tasks(self.config, console, allow_code_execution=self.allow_code_execution)
        pair = load_with_status(self.config.base, console)
        if self.artefact is not None and not self.force:
            self.artefact.check(fingerprints(pair), self.config.base.settings)
        watch(Evaluation(self.config, pair, tasks, self.out), console)
        if self.then is not None:
            watch(Evaluation(self.then(), pair, tasks, self.out), console)
        console.print(Text(f"the run is in {self.out}; next: easd report {self.out}"))


def load_tasks(
    config: Grid[Any], console: Console, *, allow_code_execution: bool = False
) -> list[Task]:
    """Loads every task, and says what was skipped."""
    tasks = []
    for spec in config.tasks:
        with console.status(f"loading {spec.name}"):
            task = spec.load(allow_code_execution=allow_code_execution)
        for line in task.skipped:
            console.print(Text(f"skipped: {task.name}: {line}", "yellow"), soft_wrap=True)
        tasks.append(task)
    return tasks


def watch(evaluation: GridRun[Any], console: Console) -> None:
    """Runs an evaluation behind a progress bar and prints a table of accuracies."""
    tally: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    texts = tokens = 0
    seconds = 0.0
    total = len(evaluation.chunks())
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
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
            seen = tally[chunk.task.name, chunk.system.name]
            seen[0] += progress.correct
            seen[1] += progress.texts
            texts += progress.texts
            tokens += progress.tokens
            seconds += progress.seconds
            note = f"{chunk.task.name} · {chunk.system.name}"
            if seen[1]:
                note += f" · {seen[0] / seen[1]:.1%} of {seen[1]} right"
            if seconds:
                note += f" · {tokens / seconds:,.0f} tok/s"
            bar.update(task, completed=progress.done, note=note)

        evaluation.run(show)
    table = Table("task", "system", "right", "texts", title="this session")
    for (name, system), (correct, count) in tally.items():
        if count:
            table.add_row(name, system, f"{correct / count:.1%}", f"{count:,}")
    if texts:
        console.print(table)
    else:
        console.print("nothing was left to decode")
