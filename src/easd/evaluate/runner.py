"""Decodes a grid of systems, tasks and seeds into a run folder, chunk by chunk.

Systems take turns on the same items, so that other load on the machine affects all of them. Each
chunk is written when it is finished, and a resumed run begins with the first missing one. All
randomness is keyed, so decoding a chunk again gives the same texts.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
import pyarrow as pa

from easd.evaluate.grid import Grid, S
from easd.runs import TABLES, RunFolder, describe
from easd.runs.fit_overlap import overlaps
from easd.tasks import Item, Task

_TABLES = TABLES["evaluation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk(Generic[S]):
    """One system on one chunk of a task's items with one seed."""

    system: S
    task: Task
    seed: int
    first: int  # index of the first item within the task
    items: Sequence[Item]

    @property
    def name(self) -> str:
        """Name of the chunk's files, distinct within a run."""
        return f"{self.task.name}-s{self.seed}-{self.first:06d}-{slug(self.system.name)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The state of an evaluation after a chunk.

    Attributes:
        done, total: chunks finished, earlier runs included, and chunks in all.
        resumed: whether an earlier run finished the chunk.
        texts, correct, tokens, seconds: counts of the chunk, and the wall time of decoding it.
    """

    chunk: Chunk[Any]
    done: int
    total: int
    resumed: bool
    texts: int = 0
    correct: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The result of decoding a chunk.

    Attributes:
        texts: decoding's columns of the samples table, in the order of the items.
        timing: decoding's columns of the chunks table.
        tokens: rows of the tokens table without their cell, if recorded.
        vocabulary: texts of the tokens in these rows, if recorded.
    """

    texts: list[dict[str, Any]]
    timing: dict[str, Any]
    tokens: pa.Table | None = None
    vocabulary: pa.Table | None = None


class GridRun(ABC, Generic[S]):
    """A grid in a run folder, new or resumed."""

    def __init__(
        self,
        config: Grid[S],
        tasks: Sequence[Task],
        folder: str | Path,
        fitted: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes the folder, which is new or holds a run with the same settings.

        Args:
            config: the grid.
            tasks: its tasks, loaded.
            folder: of the run.
            fitted: `CalibrationFile.fitted_on` of a calibration in use.

        Raises:
            TraceError: The folder holds something else, or a run with other settings.
        """
        self.config = config
        self.tasks = tasks
        self._fitted = [dict(fitted)] if fitted else []
        self._out = RunFolder(folder, "evaluation")
        try:
            self._begin()
        except BaseException:
            self._out.release()
            raise

    @abstractmethod
    def decode(self, chunk: Chunk[S]) -> Decoded:
        """Decodes the chunk's texts.

        Raises:
            EasdError: They cannot be decoded.
        """

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Entries of run.json on models, versions and hardware."""

    def chunks(self) -> list[Chunk[S]]:
        """All chunks in the order of decoding."""
        size = self.config.chunk
        return [
            Chunk(
                system=system,
                task=task,
                seed=seed,
                first=first,
                items=task.items[first : first + size],
            )
            for seed in self.config.seeds
            for task in self.tasks
            for first in range(0, len(task.items), size)
            for system in self.config.systems
        ]

    def run(self, on_chunk: Callable[[Progress], None] | None = None) -> None:
        """Decodes every chunk that is not finished yet.

        Raises:
            EasdError: A chunk cannot be decoded or written; finished ones stay.
        """
        with self._out:
            for progress in self._progress():
                if on_chunk is not None:
                    on_chunk(progress)

    def _progress(self) -> Iterator[Progress]:
        chunks = self.chunks()
        for done, chunk in enumerate(chunks, 1):
            if self._out.has(chunk.name):
                yield Progress(chunk=chunk, done=done, total=len(chunks), resumed=True)
                continue
            samples, timing = self._finish(chunk)
            yield Progress(
                chunk=chunk,
                done=done,
                total=len(chunks),
                resumed=False,
                texts=len(samples),
                correct=sum(sample["correct"] for sample in samples),
                tokens=timing["tokens"] or 0,
                seconds=timing["seconds"],
            )

    def _finish(self, chunk: Chunk[S]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Decodes, grades and writes a chunk; returns its samples and its timing."""
        decoded = self.decode(chunk)
        cell = {"system": chunk.system.name, "task": chunk.task.name, "seed": chunk.seed}
        samples = [
            {**cell, "index": chunk.first + place, **self._graded(chunk, item, text)}
            for place, (item, text) in enumerate(zip(chunk.items, decoded.texts, strict=True))
        ]
        tokens = [s["new_tokens"] for s in samples if s["new_tokens"] is not None]
        timing = {
            **cell,
            "first": chunk.first,
            "texts": len(samples),
            "tokens": sum(tokens) if tokens else None,
            **decoded.timing,
        }
        tables = {
            "samples": pa.Table.from_pylist(samples, _TABLES["samples"]),
            "chunks": pa.Table.from_pylist([timing], _TABLES["chunks"]),
        }
        if decoded.tokens is not None:
            tables["tokens"] = _with_cell(decoded.tokens, cell)
        if decoded.vocabulary is not None:
            tables["vocabulary"] = decoded.vocabulary
        self._out.write(chunk.name, tables)
        return samples, timing

    def _graded(self, chunk: Chunk[S], item: Item, text: dict[str, Any]) -> dict[str, Any]:
        grade = chunk.task.grade(item, text["text"])
        return {
            "item": item.id,
            "answer": grade.answer,
            "correct": grade.correct,
            "failure": grade.failure,
            **text,
        }

    def _begin(self) -> None:
        run = describe(
            "evaluation",
            self.config.to_dict(),
            systems=[system.to_dict() for system in self.config.systems],
            tasks={task.name: _task_dict(task) for task in self.tasks},
            fitted=self._fitted,
            **self.about(),
        )
        earlier = self._out.earlier
        if earlier is not None:
            wanted = _must_agree(run)
            # A resumed run can add systems, and leave some out.
            known = {name: value for name, value in _must_agree(earlier).items() if name in wanted}
            added = {f"system {system['name']}" for system in run["systems"]} - known.keys()
            self._out.check_same(known, {n: v for n, v in wanted.items() if n not in added})
            names = {system["name"] for system in run["systems"]}
            kept = [system for system in earlier["systems"] if system["name"] not in names]
            run["systems"] = kept + run["systems"]
            before = earlier["fitted"]
            run["fitted"] = before + [fitted for fitted in self._fitted if fitted not in before]
        for task in self.tasks:
            self._out.write(task.name, {"items": _items_table(task)})
        self._out.begin(run)

    def warnings(self) -> Iterator[str]:
        """Warnings for users, before decoding."""
        for path in self._out.damaged:
            yield f"{path} was damaged; it is in {self._out.folder / 'damaged'} now"
        yield from overlaps(self._out.run)


def _must_agree(run: dict[str, Any]) -> dict[str, Any]:
    """Settings that cannot change within a run, by name."""
    return {
        **run["config"],
        **{f"system {system['name']}": system for system in run["systems"]},
        "data of the tasks": run["tasks"],
        "models": run["models"].get("fingerprints"),
    }


def slug(name: str) -> str:
    """A name as part of a file name, made distinct by a short hash."""
    plain = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")[:40]
    return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=3).hexdigest()}"


def _with_cell(tokens: pa.Table, cell: dict[str, Any]) -> pa.Table:
    size = tokens.num_rows
    columns = [
        pa.array(np.full(size, cell[f.name])).cast(f.type)
        if f.name == "seed"
        else pa.DictionaryArray.from_arrays(np.zeros(size, dtype=np.int32), [cell[f.name]])
        for f in _TABLES["tokens"]
        if f.name in cell
    ]
    return pa.table([*columns, *tokens.columns], _TABLES["tokens"])


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
    return pa.Table.from_pylist(rows, _TABLES["items"])


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
