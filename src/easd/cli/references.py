"""Options and first steps of commands that read a task's written solutions with both models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, TypeVar

from cyclopts import Parameter
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from easd.cli.grid_options import (
    TASK_METAVAR,
    Data,
    OfGrid,
    SetValue,
    SharedDecoding,
    load_tasks,
    settings,
)
from easd.cli.options import AsJson, ModelOptions, Quiet
from easd.diagnose.references import references
from easd.engine.pair import Pair
from easd.evaluate.config import StudyConfig, load_study
from easd.pairs.from_config import load_with_status
from easd.tasks import Task

T = TypeVar("T")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """Options of the task to read, the models that read it, and the output."""

    models: ModelOptions = None
    task: Annotated[
        str,
        OfGrid(
            metavar=TASK_METAVAR,
            help="A task with written solutions, its first items as name:count, or a slice as "
            "name:500-700; or `file` with --data, for a few dozen solved examples of your own.",
        ),
    ]
    data: Data = None
    set_: SetValue = None
    decoding: SharedDecoding = None
    as_json: Annotated[AsJson, Parameter(help="Print everything as JSON.")] = False
    quiet: Quiet = False

    @cached_property
    def console(self) -> Console:
        return Console(stderr=True, quiet=self.quiet)

    def load(self) -> tuple[StudyConfig, Task, Pair]:
        """Returns settings, the task and both models.

        Raises:
            EasdError: One of them cannot be used.
        """
        asked = (self.models, self.decoding)
        values = settings(*asked, task=[self.task], data=self.data, set_=self.set_)
        study = load_study(None, values)
        (task,) = load_tasks(study, self.console)
        return study, task, load_with_status(study.base, self.console)

    def read(self, how: Callable[..., T], study: StudyConfig, task: Task, pair: Pair) -> T:
        """Reads the task's solutions behind a progress bar.

        Args:
            how: called with the pair, the texts, settings, and a function to report progress to.
        """
        texts = references(task, pair, study.base.chat)
        say_skipped(task, self.console)
        with reading_bar(self.console) as on_step:
            return how(pair, texts, study.base.settings, on_step)


def say_skipped(task: Task, console: Console) -> None:
    """Prints how many items of a task have no solution to read."""
    missing = sum(item.reference is None for item in task.items)
    if missing:
        console.print(Text(f"skipped: {missing} items of {task.name} without a solution", "yellow"))


@contextmanager
def reading_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Shows a progress bar; yields the function to report texts and their number to."""
    with Progress(console=console, transient=True) as bar:
        reading = bar.add_task("reading the references with both models", total=None)
        yield lambda done, total: bar.update(reading, completed=done, total=total)
