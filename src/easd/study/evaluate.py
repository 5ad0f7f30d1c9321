"""Decode a grid of systems, tasks and seeds, unit by unit, and grade every text.

A unit is one system on one chunk of a task's items with one seed. Units of different systems on the
same chunk follow each other, so that whatever else the machine does hits all systems alike. Each
unit is written when it is finished; a run that was stopped goes on with the first unit missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from easd.engine.chat import encode
from easd.engine.generate import context_limit, decode, make_requests
from easd.engine.models import Pair
from easd.engine.request import Row
from easd.errors import EasdError, InputError, TraceError
from easd.study import store
from easd.study.config import StudyConfig, System
from easd.study.recorder import Recorder, has_conditions
from easd.study.schema import FORMAT, ITEMS, SAMPLES, TOKENS, UNITS
from easd.study.tasks import Item, Task
from easd.trace.provenance import surroundings
from easd.trace.rows import tokens_table
from easd.trace.schema import TOP
from easd.trace.texts import TokenTexts



@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One system on one chunk of a task's items with one seed."""

    system: System
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

    unit: Unit
    done: int
    total: int
    resumed: bool
    texts: int = 0
    correct: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Evaluation:
    """A study in a folder, to be run or to be gone on with."""

    def __init__(
        self, config: StudyConfig, pair: Pair, tasks: Sequence[Task], folder: str | Path
    ) -> None:
        """Takes the folder and checks that what it holds is part of this very study.

        Raises:
            TraceError: The folder belongs to something else, or to a run with other settings.
            InputError: A prompt does not fit the context window.
        """
        self.config = config
        self.pair = pair
        self.tasks = tasks
        self.folder = Path(folder)
        self._texts = TokenTexts(pair.tokenizer)
        self._prompts = {task.name: self._encode(task) for task in tasks}
        self._lock = store.claim(self.folder)
        try:
            self._run = self._describe()
            for task in tasks:
                store.write_items(self.folder, task.name, _items_table(task))
            store.write_description(self.folder, self._run)
        except BaseException:
            os.close(self._lock)
            raise

    def units(self) -> list[Unit]:
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
            samples, timing = self._decode(unit)
            yield Progress(
                unit=unit,
                done=done,
                total=len(units),
                resumed=False,
                texts=len(samples),
                correct=sum(sample["correct"] for sample in samples),
                tokens=timing["tokens"],
                seconds=timing["seconds"],
            )

    def _decode(self, unit: Unit) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        recorder = Recorder(unit.system.settings.rule, with_tokens=unit.first < self.config.trace)
        settings = self.settings(unit)
        prompts = self._prompts[unit.task.name][unit.first : unit.first + len(unit.items)]
        requests = [
            replace(request, number=unit.first + request.number)
            for request in make_requests(
                [self.pair.target, self.pair.draft], prompts, settings, self.pair.tokenizer
            )
        ]
        for record in decode(self.pair.target, self.pair.draft, requests, settings):
            recorder.add(record)
        cell = {"system": unit.system.name, "task": unit.task.name, "seed": unit.seed}
        samples = [
            {**cell, **self._sample(unit, recorder, place)} for place in range(len(unit.items))
        ]
        timing = {**cell, **_timing(unit, recorder, settings.batch_size)}
        tables = {
            "samples": pa.Table.from_pylist(samples, SAMPLES),
            "units": pa.Table.from_pylist([timing], UNITS),
        }
        columns = recorder.token_columns()
        if columns is not None:
            top_n = getattr(recorder.rule, "top_n", TOP)
            texts = self._texts.of(columns)
            tokens = tokens_table(columns, texts, run=unit.name, top_n=top_n)
            tables["tokens"] = _with_cell(tokens, cell)
        store.write_unit(self.folder, unit.name, tables)
        return samples, timing

    def settings(self, unit: Unit) -> Any:
        """How a unit is decoded: the system's settings, with the task's budget and stops."""
        settings = unit.system.settings
        return replace(
            settings,
            seed=unit.seed,
            max_new_tokens=settings.max_new_tokens or unit.task.max_new_tokens,
            stop=settings.stop or unit.task.stop,
        )

    def _sample(self, unit: Unit, recorder: Recorder, place: int) -> dict[str, Any]:
        item, index = unit.items[place], unit.first + place
        row = recorder.rows[index]
        text = str(self.pair.tokenizer.decode(row.new_ids, skip_special_tokens=True))
        grade = unit.task.grade(item, text)
        return {
            "item": item.id,
            "index": index,
            "text": text,
            "token_ids": row.new_ids,
            "answer": grade.answer,
            "correct": grade.correct,
            "failure": grade.failure,
            "finish_reason": row.finished,
            "prompt_tokens": len(row.request.prompt),
            "new_tokens": len(row.new_ids),
            **_counts(recorder, row),
        }

    def _encode(self, task: Task) -> list[list[int]]:
        """Prompts of a task as token ids, checked against the context window."""
        chat = self.config.base.chat
        chat = task.chat and bool(self.pair.tokenizer.chat_template) if chat is None else chat
        system = task.system if chat else None
        prompts = [
            encode(item.prompt, self.pair.tokenizer, chat=chat, system=system)
            for item in task.items
        ]
        limit = context_limit([self.pair.target, self.pair.draft])
        new = max(s.settings.max_new_tokens or task.max_new_tokens for s in self.config.systems)
        for item, ids in zip(task.items, prompts, strict=True):
            if limit is not None and len(ids) + new > limit:
                raise InputError(
                    f"item {item.id!r} of {task.name} has {len(ids)} prompt tokens and "
                    f"max_new_tokens is {new}, over the context window of {limit}; lower "
                    "max_new_tokens, or leave the item out"
                )
        return prompts

    def _describe(self) -> dict[str, Any]:
        about = surroundings(self.pair)
        run = {
            "format": FORMAT,
            "kind": "evaluation",
            "status": "running",
            "started": _now(),
            "ended": None,
            "config": self.config.to_dict(),
            "systems": [system.to_dict() for system in self.config.systems],
            "tasks": {task.name: _task_dict(task) for task in self.tasks},
            **about,
        }
        if not (self.folder / "run.json").exists():
            return run
        earlier = store.read_description(self.folder)
        self._check_same(earlier, run)
        return {**run, "started": earlier["started"]}

    def _check_same(self, earlier: dict[str, Any], run: dict[str, Any]) -> None:
        known = {system["name"]: system for system in earlier["systems"]}
        wanted = {system["name"]: system for system in run["systems"]}
        lost = known.keys() - wanted.keys()
        if lost:
            run["systems"] = [*(known[name] for name in known if name in lost), *run["systems"]]
        pairs = [
            *((key, earlier["config"].get(key), value) for key, value in run["config"].items()),
            *((f"system {name}", known[name], wanted[name]) for name in known.keys() & wanted),
            ("tasks", earlier["tasks"], run["tasks"]),
            ("models", earlier["models"]["fingerprints"], run["models"]["fingerprints"]),
        ]
        for name, before, now in pairs:
            if before != now:
                raise TraceError(
                    f"{str(self.folder)!r} holds a run with another {name} ({_short(before)}, now "
                    f"{_short(now)}); name another folder, or the settings it was begun with"
                )

    def _close(self, status: str, **more: Any) -> None:
        store.write_description(
            self.folder, {**self._run, "status": status, "ended": _now(), **more}
        )


def slug(name: str) -> str:
    """A name as part of a file name, told apart from other names by a short hash."""
    import hashlib
    import re

    plain = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")[:40]
    return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=3).hexdigest()}"


def _counts(recorder: Recorder, row: Row) -> dict[str, Any]:
    """How a text came to be; the draft alone proposes and keeps every token."""
    new = len(row.new_ids)
    if recorder.rule.models == "draft":
        return {"blocks": 0, "proposed": new, "examined": new, "accepted": new, "penalised": 0}
    counts = row.counts
    found: dict[str, Any] = {
        "blocks": counts.blocks,
        "proposed": counts.proposed,
        "examined": counts.examined,
        "accepted": counts.accepted,
        "penalised": counts.penalised,
    }
    if not hasattr(recorder.rule, "signals"):
        return found
    gate, *conditions = recorder.gates[row.request.number].tolist()
    found["gate_open"] = gate
    if has_conditions(recorder.rule):
        names = ("over_draft_entropy", "over_target_entropy", "over_overlap")
        found |= dict(zip(names, map(round, conditions), strict=True))
    return found


def _timing(unit: Unit, recorder: Recorder, batch: int) -> dict[str, Any]:
    seconds = dict(recorder.seconds)
    forwards = {"target_steps": recorder.target_steps, "draft_steps": recorder.draft_steps}
    if recorder.rule.models == "draft":
        seconds |= {"draft": seconds["target"], "target": 0.0}
        forwards = {"target_steps": 0, "draft_steps": recorder.target_steps}
    return {
        "first": unit.first,
        "texts": len(unit.items),
        "batch": min(batch, len(unit.items)),
        "tokens": sum(len(row.new_ids) for row in recorder.rows.values()),
        **forwards,
        **{f"{part}_seconds": value for part, value in seconds.items()},
        "seconds": sum(seconds.values()),
    }


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
