"""Options and first steps of commands that read a task's written solutions with both models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, TypeVar

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
from easd.diagnose.reference_pass import ReferenceText
from easd.engine.pair import Pair
from easd.errors import InputError
from easd.evaluate.config import StudyConfig, load_study
from easd.evaluate.prompting import encode_item
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
        texts = references(task, pair, study, self.console)
        with Progress(console=self.console, transient=True) as bar:
            reading = bar.add_task("reading the references with both models", total=None)
            return how(
                *(pair, texts, study.base.settings),
                lambda done, total: bar.update(reading, completed=done, total=total),
            )


def references(
    task: Task, pair: Pair, config: StudyConfig, console: Console
) -> list[ReferenceText]:
    """Returns prompt and gold solution, as token ids, of every item that has a solution.

    Raises:
        InputError: No item has one.
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
