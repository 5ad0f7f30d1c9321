"""Interleaved runs of several systems, and their run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa

from easd.engine.pair import Pair, provenance
from easd.errors import NumericsError
from easd.runs import TABLES, RunFolder, describe, open_run
from easd.speed.bench.limits import check_memory, check_window
from easd.speed.bench.systems import (
    LONGEST,
    Load,
    System,
    Timing,
    count_operations,
    decode_once,
)

T = TypeVar("T")

_WARM_UP = 8  # New tokens per text.


@dataclass(frozen=True, slots=True)
class Cell:
    """Batch size, and tokens of a prompt; None keeps the prompts' lengths."""

    batch: int
    context: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A benchmark of every system in every cell.

    Attributes:
        prompts: token ids; a cell takes the first of them, cut or repeated to its context.
        rounds: number of rounds, in each of which every cell and system has one turn; each round
            begins with a different one.
        texts: texts per row of the batch.
        load: settings of decoding; a cell sets the batch size.
    """

    pair: Pair
    prompts: Sequence[Sequence[int]]
    cells: Sequence[Cell]
    systems: Sequence[System]
    folder: Path
    rounds: int = 5
    texts: int = 1
    load: Load

    def run(self) -> Iterator[tuple[int, Cell, System, Timing | None]]:
        """Yields every turn, with its timing or None where an earlier session timed it.

        Each timing is written at once, so a run that was stopped continues where it was, and one
        with more rounds than before adds them.

        Raises:
            ConfigError: Texts do not fit the models' window or the memory.
            TraceError: The folder holds something else or a run with other settings, or cannot be
                written.
        """
        for cell in self.cells:
            longest = max(map(len, self._prompts(cell)))
            check_window(self.pair, longest, self.load.tokens)
            drafted = max(LONGEST, *(system.most_gamma for system in self.systems))
            check_memory(self.pair, cell.batch, longest + self.load.tokens, drafted)
        out = RunFolder(self.folder, "bench")
        try:
            rows = self._begin(out)
        except BaseException:
            out.release()
            raise
        with out:
            yield from self._decode_missing(out, rows)

    def _decode_missing(
        self, out: RunFolder, rows: list[dict[str, Any]]
    ) -> Iterator[tuple[int, Cell, System, Timing | None]]:
        done = {(row["round"], row["batch"], row["context"], row["system"]) for row in rows}
        turns = list(self._turns())
        missing = {turn for turn in turns if (turn[0], *astuple(turn[1]), turn[2].name) not in done}
        # Counting operations also warms up caches, packed weights and allocators.
        operations = {
            (cell, system): self._run(count_operations, cell, system, _WARM_UP)
            for cell, system in dict.fromkeys(turn[1:] for turn in turns if turn in missing)
        }
        places = {pair: place for place, pair in enumerate(product(self.cells, self.systems))}
        for turn in turns:
            number, cell, system = turn
            if turn not in missing:
                yield *turn, None
                continue
            timing = self._run(decode_once, cell, system, self.load.tokens, number + 1)
            timing.operations = operations[cell, system]
            gamma = 0 if system.gamma == "auto" else system.gamma
            own = {"round": number, **asdict(cell), "system": system.name, "gamma": gamma}
            row = pa.Table.from_pylist([own | timing.to_row()], TABLES["bench"]["timings"])
            part = number * len(places) + places[cell, system]
            out.write(f"part-{part:05d}", {"timings": row})
            yield *turn, timing

    def _run(self, run: Callable[..., T], cell: Cell, system: System, tokens: int, *rest: int) -> T:
        """Calls `run` with a system and a cell's prompts."""
        load = replace(self.load, batch=cell.batch, tokens=min(tokens, self.load.tokens))
        try:
            return run(system, self.pair, self._prompts(cell), load, *rest)
        except NumericsError as error:
            raise NumericsError(
                f"{system.name} with {cell.batch} texts at once cannot be timed: {error}"
            ) from None

    def _turns(self) -> Iterator[tuple[int, Cell, System]]:
        turns = [(cell, system) for cell in self.cells for system in self.systems]
        for number in range(self.rounds):
            first = number * len(turns) // self.rounds
            for cell, system in turns[first:] + turns[:first]:
                yield number, cell, system

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

    def _begin(self, out: RunFolder) -> list[dict[str, Any]]:
        """Writes the run's description to its folder; returns the rows that are timed already."""
        load = asdict(self.load)
        del load["batch"]
        config = {
            "rounds": self.rounds,
            "texts": self.texts,
            **load,
            "cells": [asdict(cell) for cell in self.cells],
            "systems": [asdict(system) for system in self.systems],
            "prompts": blake2b(json.dumps(self.prompts).encode(), digest_size=12).hexdigest(),
        }
        run = describe("bench", config, **provenance(self.pair))
        if out.earlier is not None:
            out.check_same(_must_agree(out.earlier), _must_agree(run))
            run["config"]["rounds"] = max(out.earlier["config"]["rounds"], self.rounds)
        out.begin(run)
        return out.rows("timings")


def read_timings(folder: Path) -> pd.DataFrame:
    """Reads a folder's timings, one row per turn.

    Raises:
        TraceError: It holds no benchmark.
    """
    return open_run(folder, "bench").timings.to_pandas()


def _must_agree(run: dict[str, Any]) -> dict[str, Any]:
    """Returns what cannot change within a run, by name; rounds can be added."""
    groups = {"config": "", "models": "models ", "versions": "versions ", "hardware": "hardware "}
    found = {f"{prefix}{n}": v for group, prefix in groups.items() for n, v in run[group].items()}
    return {name: value for name, value in found.items() if name != "rounds"}
