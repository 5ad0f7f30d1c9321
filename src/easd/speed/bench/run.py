"""The interleaved run, and the folder it leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from easd.engine.pair import Pair
from easd.errors import TraceError
from easd.runs.files import now, replace_file, write_json
from easd.runs.provenance import surroundings
from easd.speed.bench.limits import check_memory, check_window
from easd.speed.bench.systems import LONGEST, Load, System, Timing, decode_once

TIMINGS = "timings.parquet"
DESCRIPTION = "bench.json"
_WARM_UP = 8  # Tokens of each text.
_MAY_DIFFER = ("started", "rounds", "git")


@dataclass(frozen=True, slots=True)
class Cell:
    """Texts at once, and tokens of a prompt (None: as the prompts are)."""

    batch: int
    context: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Which systems decode what, how often.

    Attributes:
        prompts: token ids; a cell takes the first of them, cut or repeated to its context.
        cells, systems: every system decodes in every cell.
        rounds: how often; within a round every cell and system takes its turn, and each round
            begins with another one.
        tokens: of each text.
        texts: a cell decodes, for each text of its batch.
    """

    pair: Pair
    prompts: Sequence[Sequence[int]]
    cells: Sequence[Cell]
    systems: Sequence[System]
    folder: Path
    rounds: int = 5
    tokens: int = 64
    texts: int = 1
    temperature: float = 1.0
    tau_h: float = 1.5

    def run(self) -> Iterator[tuple[int, Cell, System, Timing | None]]:
        """Decodes and yields every run of a system, with None where an earlier session timed it.

        The folder is written after each, so that a run which was stopped goes on where it was. With
        more rounds than before it gets those that are missing.

        Raises:
            ConfigError: Texts do not fit the models' window or the memory.
            TraceError: The folder holds something else or a run with other settings, or cannot be
                written.
        """
        for cell in self.cells:
            longest = max(map(len, self._prompts(cell)))
            check_window(self.pair, longest, self.tokens)
            drafted = max(LONGEST, *(system.gamma for system in self.systems))
            check_memory(self.pair, cell.batch, longest + self.tokens, drafted)
        rows = self._begin()
        done = {(row["round"], row["batch"], row["context"], row["system"]) for row in rows}
        turns = list(self._turns())
        missing = {turn for turn in turns if (turn[0], *astuple(turn[1]), turn[2].name) not in done}
        for cell, system in dict.fromkeys(turn[1:] for turn in turns if turn in missing):
            self._decode(cell, system, 0, _WARM_UP)  # Caches, packed weights, allocators.
        for turn in turns:
            number, cell, system = turn
            if turn not in missing:
                yield *turn, None
                continue
            timing = self._decode(cell, system, number + 1, self.tokens)
            own = {"round": number, **asdict(cell), "system": system.name, "gamma": system.gamma}
            rows.append(own | timing.to_row())
            table = pa.Table.from_pylist(rows)
            replace_file(self.folder / TIMINGS, lambda to, table=table: pq.write_table(table, to))
            yield *turn, timing

    def _turns(self) -> Iterator[tuple[int, Cell, System]]:
        turns = [(cell, system) for cell in self.cells for system in self.systems]
        for number in range(self.rounds):
            first = number * len(turns) // self.rounds
            for cell, system in turns[first:] + turns[:first]:
                yield number, cell, system

    def _decode(self, cell: Cell, system: System, seed: int, tokens: int) -> Timing:
        load = Load(
            batch=cell.batch,
            tokens=min(tokens, self.tokens),
            temperature=self.temperature,
            tau_h=self.tau_h,
        )
        return decode_once(system, self.pair, self._prompts(cell), load, seed)

    def _prompts(self, cell: Cell) -> list[Sequence[int]]:
        count = cell.batch * self.texts
        chosen = [self.prompts[index % len(self.prompts)] for index in range(count)]
        if cell.context is None:
            return chosen
        every = [token for prompt in self.prompts for token in prompt]
        return [
            (list(prompt) + every * (cell.context // len(every) + 1))[: cell.context]
            for prompt in chosen
        ]

    def _begin(self) -> list[dict[str, Any]]:
        """Describes the run in its folder; returns the rows of what is timed already."""
        run = self._describe()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            earlier = json.loads((self.folder / DESCRIPTION).read_text(encoding="utf-8"))
        except FileNotFoundError:
            # A session that was stopped before it wrote anything leaves hidden files at most.
            if any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise TraceError(
                    f"{str(self.folder)!r} holds something else; a benchmark needs a folder of its "
                    "own"
                ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TraceError(
                f"cannot use {str(self.folder)!r} ({reason}); name another folder"
            ) from None
        else:
            self._check_same(earlier, run)
            run["started"] = earlier["started"]
            run["rounds"] = max(earlier["rounds"], self.rounds)
        write_json(self.folder / DESCRIPTION, run)
        timings = self.folder / TIMINGS
        return pq.read_table(timings).to_pylist() if timings.exists() else []

    def _check_same(self, earlier: dict[str, Any], run: dict[str, Any]) -> None:
        before = _flat(earlier)
        for name, value in _flat(run).items():
            if before.get(name) != value:
                raise TraceError(
                    f"{str(self.folder)!r} holds a run with another {name} "
                    f"({_short(before.get(name))}, now {_short(value)}); name another folder, or "
                    "the settings it was begun with"
                )

    def _describe(self) -> dict[str, Any]:
        return {
            "started": now(),
            "rounds": self.rounds,
            "tokens": self.tokens,
            "texts": self.texts,
            "temperature": self.temperature,
            "tau_h": self.tau_h,
            "cells": [asdict(cell) for cell in self.cells],
            "systems": [asdict(system) for system in self.systems],
            "prompts": blake2b(json.dumps(self.prompts).encode(), digest_size=12).hexdigest(),
            **surroundings(self.pair),
        }


def read_timings(folder: Path) -> pd.DataFrame:
    """One row for each timed run of a folder.

    Raises:
        TraceError: It holds none.
    """
    try:
        return pd.read_parquet(folder / TIMINGS)
    except OSError as error:
        reason = error.strerror or error
        raise TraceError(f"{str(folder)!r} holds no benchmark ({reason})") from None


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    """What tells runs apart, the members of groups each by itself."""
    found = {}
    for name, value in run.items():
        if name not in _MAY_DIFFER:
            members = value.items() if isinstance(value, dict) else [("", value)]
            found |= {f"{name} {member}".strip(): held for member, held in members}
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
