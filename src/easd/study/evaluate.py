"""Decode a grid of systems, tasks and seeds, unit by unit, and grade every text.

A unit is one system on one chunk of a task's items with one seed. Units of different systems on the
same chunk follow each other, so that whatever else the machine does hits all systems alike. Each
unit is written when it is finished; a run that was stopped goes on with the first unit missing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from easd.engine.generate import context_limit
from easd.engine.models import Pair
from easd.engine.reward_guided import RewardGuided
from easd.engine.rewards import Scorer, load_reward_model
from easd.engine.settings import Settings
from easd.errors import ConfigError, EasdError, InputError, TraceError
from easd.pairs.rewards import STEP_TOKENS
from easd.study import store
from easd.study.config import StudyConfig, System
from easd.study.decoding import Decoded, decode_by_rule, decode_reward_guided
from easd.study.prompting import encode_item
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
            ConfigError: A reward-guided system has no reward model.
        """
        self.config = config
        self.pair = pair
        self.tasks = tasks
        self.folder = Path(folder)
        self._texts = TokenTexts(pair.tokenizer)
        self._prompts = {task.name: self._encode(task) for task in tasks}
        self._rewards = {
            system.name: self._load_reward(system) for system in config.systems if system.reward
        }
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
            samples, timing = self._finish(unit)
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

    def _finish(self, unit: Unit) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Decodes, grades and writes a unit; returns its samples and its timing."""
        decoded = self._decode(unit)
        cell = {"system": unit.system.name, "task": unit.task.name, "seed": unit.seed}
        samples = [
            {**cell, "index": unit.first + place, **self._graded(unit, item, text)}
            for place, (item, text) in enumerate(zip(unit.items, decoded.texts, strict=True))
        ]
        timing = {
            **cell,
            "first": unit.first,
            "texts": len(samples),
            "batch": min(unit.system.settings.batch_size, len(samples)),
            "tokens": sum(sample["new_tokens"] for sample in samples),
            **decoded.timing,
        }
        tables = {
            "samples": pa.Table.from_pylist(samples, SAMPLES),
            "units": pa.Table.from_pylist([timing], UNITS),
        }
        if decoded.tokens is not None:
            top_n = getattr(unit.system.settings.rule, "top_n", TOP)
            texts = self._texts.of(decoded.tokens)
            tokens = tokens_table(decoded.tokens, texts, run=unit.name, top_n=top_n)
            tables["tokens"] = _with_cell(tokens, cell)
        store.write_unit(self.folder, unit.name, tables)
        return samples, timing

    def _decode(self, unit: Unit) -> Decoded:
        prompts = self._prompts[unit.task.name][unit.first : unit.first + len(unit.items)]
        settings, reward = self.settings(unit), unit.system.reward
        if reward is None:
            traced = unit.first < self.config.trace
            return decode_by_rule(
                self.pair, prompts, settings, first=unit.first, with_tokens=traced
            )
        system, scorer = self._rewards[unit.system.name]
        return decode_reward_guided(
            self.pair, prompts, settings, first=unit.first, system=system, scorer=scorer
        )

    def settings(self, unit: Unit) -> Settings:
        """How a unit is decoded: the system's settings, with the task's budget and stops."""
        settings = unit.system.settings
        return replace(
            settings,
            seed=unit.seed,
            max_new_tokens=settings.max_new_tokens or unit.task.max_new_tokens,
            stop=settings.stop or unit.task.stop,
        )

    def _graded(self, unit: Unit, item: Item, text: dict[str, Any]) -> dict[str, Any]:
        written = str(self.pair.tokenizer.decode(text["token_ids"], skip_special_tokens=True))
        grade = unit.task.grade(item, written)
        return {
            "item": item.id,
            "text": written,
            "answer": grade.answer,
            "correct": grade.correct,
            "failure": grade.failure,
            "new_tokens": len(text["token_ids"]),
            **text,
        }

    def _load_reward(self, system: System) -> tuple[RewardGuided, Scorer]:
        """The reward model of a reward-guided system, and where its steps end."""
        reward = system.reward
        assert reward is not None
        if self.pair.draft is None:
            raise ConfigError(f"{system.name!r} drafts steps; name a draft model")
        name, step = reward.model or self.pair.name, reward.step
        if reward.model is None and name not in STEP_TOKENS:
            raise ConfigError(
                f"{system.name!r} needs a reward model, and {name!r} brings none; give one, such "
                "as rsd:model=FOLDER"
            )
        scorer = load_reward_model(name, self.pair.tokenizer, device=str(self.pair.target.device))
        step = step or STEP_TOKENS.get(name, RewardGuided().step)
        return RewardGuided(delta=reward.delta, step=step), scorer

    def _encode(self, task: Task) -> list[list[int]]:
        """Prompts of a task as token ids, checked against the context window."""
        chat = self.config.base.chat
        prompts = [encode_item(item, task, self.pair.tokenizer, chat) for item in task.items]
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
