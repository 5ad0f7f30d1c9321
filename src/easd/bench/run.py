"""The interleaved run, and the folder it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from easd.bench.systems import Load, System, Timing, decode_once
from easd.engine.models import Pair
from easd.errors import TraceError
from easd.trace.files import now, replace_file, write_json
from easd.trace.provenance import surroundings

TIMINGS = "timings.parquet"
DESCRIPTION = "bench.json"


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

    def run(self) -> Iterator[tuple[int, Cell, System, Timing]]:
        """Decodes and yields every timed run; the folder is written after each round.

        Raises:
            TraceError: The folder holds something, or cannot be written.
        """
        if self.folder.exists() and any(self.folder.iterdir()):
            raise TraceError(f"{str(self.folder)!r} holds something; give a new folder")
        self._describe()
        rows: list[dict[str, Any]] = []
        turns = [(cell, system) for cell in self.cells for system in self.systems]
        for cell, system in turns:
            self._decode(cell, system, 0)  # Warms up caches, packed weights and allocators.
        for number in range(self.rounds):
            first = number * len(turns) // self.rounds
            for cell, system in turns[first:] + turns[:first]:
                timing = self._decode(cell, system, number + 1)
                rows.append(
                    {"round": number, **asdict(cell), "system": system.name, "gamma": system.gamma}
                    | timing.to_row()
                )
                yield number, cell, system, timing
            table = pd.DataFrame(rows)
            replace_file(self.folder / TIMINGS, table.to_parquet)

    def _decode(self, cell: Cell, system: System, seed: int) -> Timing:
        load = Load(
            batch=cell.batch,
            tokens=self.tokens,
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

    def _describe(self) -> None:
        run = {
            "started": now(),
            "rounds": self.rounds,
            "tokens": self.tokens,
            "texts": self.texts,
            "temperature": self.temperature,
            "tau_h": self.tau_h,
            "cells": [asdict(cell) for cell in self.cells],
            "systems": [asdict(system) for system in self.systems],
            **surroundings(self.pair),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / DESCRIPTION, run)


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
