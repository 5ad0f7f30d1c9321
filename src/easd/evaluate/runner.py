"""A grid of systems, tasks and seeds becomes a folder, unit by unit, whoever decodes.

A unit is one system on one chunk of a task's items with one seed. Units of different systems on the
same chunk follow each other, so that whatever else the machine does hits all systems alike. Each
unit is written when it is finished; a run that was stopped goes on with the first unit missing.
"""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
import pyarrow as pa

from easd.errors import EasdError, TraceError
from easd.evaluate.grid import Grid, S
from easd.runs import store
from easd.runs.files import now
from easd.runs.samples_schema import FORMAT, ITEMS, SAMPLES, TOKENS, UNITS
from easd.tasks import Item, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit(Generic[S]):
    """One system on one chunk of a task's items with one seed."""

    system: S
    task: Task
    seed: int
    first: int  # Index of the chunk's first item within the task.
    items: Sequence[Item]

    @property
    def name(self) -> str:
        """Of its files; distinct for any systems of one run."""
        return f"{self.task.name}-s{self.seed}-{self.first:06d}-{slug(self.system.name)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What an evaluation says after each unit.

    Attributes:
        unit: the unit.
        done, total: units finished, from earlier runs too, and units in all.
        resumed: whether the unit had been finished before.
        texts, correct, tokens: of the unit.
        seconds: wall time of its decoding.
    """

    unit: Unit[Any]
    done: int
    total: int
    resumed: bool
    texts: int = 0
    correct: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What decoding a unit gave.

    Attributes:
        texts: in the order of the items; columns of the samples table that decoding decides.
        timing: columns of the units table that it decides.
        tokens: rows of the tokens table without their cell, or None where none were kept.
    """

    texts: list[dict[str, Any]]
    timing: dict[str, Any]
    tokens: pa.Table | None = None


class UnitRun(ABC, Generic[S]):
    """A grid in a folder, to be run or to be gone on with."""

    def __init__(self, config: Grid[S], tasks: Sequence[Task], folder: str | Path) -> None:
        """Takes the folder and checks that what it holds is part of this very run.

        Raises:
            TraceError: The folder belongs to something else, or to a run with other settings.
        """
        self.config = config
        self.tasks = tasks
        self.folder = Path(folder)
        self._lock = store.claim(self.folder)
        try:
            self._run = self._describe()
            for task in tasks:
                store.write_items(self.folder, task.name, _items_table(task))
            store.write_description(self.folder, self._run)
        except BaseException:
            os.close(self._lock)
            raise

    @abstractmethod
    def decode(self, unit: Unit[S]) -> Decoded:
        """Writes the unit's texts.

        Raises:
            EasdError: They cannot be written.
        """

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What run.json says of models, versions and hardware; `models` tells runs apart."""

    def units(self) -> list[Unit[S]]:
        """All units in the order of decoding."""
        chunk = self.config.chunk
        return [
            Unit(
                system=system,
                task=task,
                seed=seed,
                first=first,
                items=task.items[first : first + chunk],
            )
            for seed in self.config.seeds
            for task in self.tasks
            for first in range(0, len(task.items), chunk)
            for system in self.config.systems
        ]

    def run(self, on_unit: Callable[[Progress], None] | None = None) -> None:
        """Decodes every unit that is not finished yet.

        Raises:
            EasdError: A model, a prompt or the folder does not do; what is finished stays.
        """
        try:
            for progress in self._progress():
                if on_unit is not None:
                    on_unit(progress)
            self._close("finished")
        except KeyboardInterrupt:
            self._close("interrupted")
            raise
        except EasdError as error:
            self._close("failed", error=str(error))
            raise
        finally:
            os.close(self._lock)

    def _progress(self) -> Iterator[Progress]:
        units = self.units()
        for done, unit in enumerate(units, 1):
            if store.is_written(self.folder, unit.name):
                yield Progress(unit=unit, done=done, total=len(units), resumed=True)
                continue
            samples, timing = self._finish(unit)
            yield Progress(
                unit=unit,
                done=done,
                total=len(units),
                resumed=False,
                texts=len(samples),
                correct=sum(sample["correct"] for sample in samples),
                tokens=timing["tokens"] or 0,
                seconds=timing["seconds"],
            )

    def _finish(self, unit: Unit[S]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Decodes, grades and writes a unit; returns its samples and its timing."""
        decoded = self.decode(unit)
        cell = {"system": unit.system.name, "task": unit.task.name, "seed": unit.seed}
        samples = [
            {**cell, "index": unit.first + place, **self._graded(unit, item, text)}
            for place, (item, text) in enumerate(zip(unit.items, decoded.texts, strict=True))
        ]
        tokens = [s["new_tokens"] for s in samples if s["new_tokens"] is not None]
        timing = {
            **cell,
            "first": unit.first,
            "texts": len(samples),
            "tokens": sum(tokens) if tokens else None,
            **decoded.timing,
        }
        tables = {
            "samples": pa.Table.from_pylist(samples, SAMPLES),
            "units": pa.Table.from_pylist([timing], UNITS),
        }
        if decoded.tokens is not None:
            tables["tokens"] = _with_cell(decoded.tokens, cell)
        store.write_unit(self.folder, unit.name, tables)
        return samples, timing

    def _graded(self, unit: Unit[S], item: Item, text: dict[str, Any]) -> dict[str, Any]:
        grade = unit.task.grade(item, text["text"])
        return {
            "item": item.id,
            "answer": grade.answer,
            "correct": grade.correct,
            "failure": grade.failure,
            **text,
        }

    def _describe(self) -> dict[str, Any]:
        run = {
            "format": FORMAT,
            "kind": "evaluation",
            "status": "running",
            "started": now(),
            "ended": None,
            "config": self.config.to_dict(),
            "systems": [system.to_dict() for system in self.config.systems],
            "tasks": {task.name: _task_dict(task) for task in self.tasks},
            **self.about(),
        }
        if not (self.folder / "run.json").exists():
            return run
        earlier = store.read_description(self.folder)
        self._check_same(earlier, run)
        wanted = {system["name"] for system in run["systems"]}
        kept = [system for system in earlier["systems"] if system["name"] not in wanted]
        return {**run, "systems": kept + run["systems"], "started": earlier["started"]}

    def _check_same(self, earlier: dict[str, Any], run: dict[str, Any]) -> None:
        known = {system["name"]: system for system in earlier["systems"]}
        wanted = {system["name"]: system for system in run["systems"]}
        pairs = [
            *((key, earlier["config"].get(key), value) for key, value in run["config"].items()),
            *((f"system {name}", known[name], wanted[name]) for name in known.keys() & wanted),
            ("tasks", earlier["tasks"], run["tasks"]),
            ("models", earlier["models"].get("fingerprints"), run["models"].get("fingerprints")),
        ]
        for name, before, after in pairs:
            if before != after:
                raise TraceError(
                    f"{str(self.folder)!r} holds a run with another {name} ({_short(before)}, now "
                    f"{_short(after)}); name another folder, or the settings it was begun with"
                )

    def _close(self, status: str, **more: Any) -> None:
        store.write_description(
            self.folder, {**self._run, "status": status, "ended": now(), **more}
        )


def slug(name: str) -> str:
    """A name as part of a file name, told apart from other names by a short hash."""
    plain = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")[:40]
    return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=3).hexdigest()}"


def _with_cell(tokens: pa.Table, cell: dict[str, Any]) -> pa.Table:
    size = tokens.num_rows
    columns = [
        pa.array(np.full(size, cell[f.name])).cast(f.type)
        if f.name == "seed"
        else pa.DictionaryArray.from_arrays(np.zeros(size, dtype=np.int32), [cell[f.name]])
        for f in TOKENS
        if f.name in cell
    ]
    return pa.table([*columns, *tokens.columns], TOKENS)


def _items_table(task: Task) -> pa.Table:
    rows = [
        {
            "task": task.name,
            "item": item.id,
            "index": index,
            "prompt": item.prompt,
            "answers": list(item.answers),
        }
        for index, item in enumerate(task.items)
    ]
    return pa.Table.from_pylist(rows, ITEMS)


def _task_dict(task: Task) -> dict[str, Any]:
    return {
        "source": task.source,
        "data_hash": task.data_hash,
        "items": len(task.items),
        "skipped": list(task.skipped),
        "max_new_tokens": task.max_new_tokens,
        "system": task.system,
        "unique_solution": task.unique_solution,
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
