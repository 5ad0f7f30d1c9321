"""`easd diagnose`: reference texts in, a verdict out; nothing is decoded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from easd.cli.commands.evaluate import load_tasks
from easd.diagnose.calibration_file import CalibrationFile, data_of, sampling
from easd.diagnose.diagnosis import Diagnosis, diagnose
from easd.diagnose.printing import render
from easd.diagnose.reference_pass import ReferenceText, read_positions
from easd.engine.pair import Pair, fingerprints
from easd.errors import InputError
from easd.evaluate.config import StudyConfig
from easd.evaluate.prompting import encode_item
from easd.pairs.from_config import load_with_status
from easd.runs.files import replace_file
from easd.tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnose:
    """One `easd diagnose`.

    Attributes:
        config: models, one task and sampling; its systems are not used.
        tau_h: threshold in nats to judge first.
        tau_o: overlap threshold.
        rates: firing rates to judge, too.
        kept: the firing rate whose threshold the artefact holds; None for `tau_h` itself.
        out: path of the artefact, or None.
        positions: path of a Parquet file for the table of positions, or None.
        as_json: print everything as JSON.
    """

    config: StudyConfig
    tau_h: float
    tau_o: float
    rates: Sequence[float]
    kept: float | None = None
    out: Path | None = None
    positions: Path | None = None
    as_json: bool = False
    quiet: bool = False

    def run(self) -> None:
        """Reads the references with both models, judges, prints and writes.

        Raises:
            EasdError: Models, task, settings or paths do not do.
        """
        console = Console(stderr=True, quiet=self.quiet)
        (task,) = load_tasks(self.config, console)
        pair = load_with_status(self.config.base, console)
        texts = references(task, pair, self.config, console)
        with Progress(console=console, transient=True) as bar:
            reading = bar.add_task("reading the references with both models", total=None)
            table = read_positions(
                pair,
                texts,
                self.config.base.settings,
                lambda done, total: bar.update(reading, completed=done, total=total),
            )
        if self.positions is not None:
            replace_file(self.positions, lambda to: pq.write_table(table, to))
        found = diagnose(
            table,
            tau_h=self.tau_h,
            tau_o=self.tau_o,
            rates=self.rates,
            unique_solution=task.unique_solution,
        )
        if self.as_json:
            print(json.dumps(found.to_dict(), indent=2))
        else:
            render(found, Console())
        if self.out is not None:
            height = self._save(found, pair, task)
            line = f"{self.out} holds tau_h {height:.3g} and the pool fitted there; use them with "
            console.print(Text(f"{line}--calibration {self.out}"), soft_wrap=True)

    def _save(self, found: Diagnosis, pair: Pair, task: Task) -> float:
        """Writes the threshold that was asked for, not the best-sounding one; returns it."""
        assert self.out is not None
        chosen = next(each for each in found.thresholds if each.wanted == self.kept)
        fields: dict[str, Any] = {"tau_h": chosen.tau_h, "tau_o": self.tau_o}
        fields |= {"a": chosen.pool.a, "b": chosen.pool.b}
        CalibrationFile(
            kind="diagnosis",
            fields=fields,
            pair=pair.name,
            fingerprints=fingerprints(pair),
            sampling=sampling(self.config.base.settings),
            data=[data_of(task)],
            estimates=found.to_dict(),
        ).save(self.out)
        return chosen.tau_h


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
