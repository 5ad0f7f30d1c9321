"""Interleaved runs of several systems, and their run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing
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
    VLLM,
    Load,
    System,
    Timing,
    count_operations,
    decode_once,
)
from easd.speed.bench.vllm_engines import VllmEngines, vllm_version

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
        vllm_python: interpreter of an environment with vLLM, for its systems.
    """

    pair: Pair
    prompts: Sequence[Sequence[int]]
    cells: Sequence[Cell]
    systems: Sequence[System]
    folder: Path
    rounds: int = 5
    texts: int = 1
    load: Load
    vllm_python: Path | None = None

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
            check_window(self.pair, self._longest(cell) - self.load.tokens, self.load.tokens)
            drafted = max(LONGEST, *(system.most_gamma for system in self.systems))
            check_memory(self.pair, cell.batch, self._longest(cell), drafted)
        run = self._describe()
        out = RunFolder(self.folder, "bench")
        try:
            rows = self._begin(out, run)
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
        places = {pair: place for place, pair in enumerate(product(self.cells, self.systems))}
        with ExitStack() as stack:
            engines = self._engines(stack, {system for *_, system in missing})
            operations = {
                (cell, system): self._run(_warmed_up, engines, cell, system, _WARM_UP, 0)
                for cell, system in dict.fromkeys(turn[1:] for turn in turns if turn in missing)
            }
            for turn in turns:
                number, cell, system = turn
                if turn not in missing:
                    yield *turn, None
                    continue
                timing = self._run(_timed, engines, cell, system, self.load.tokens, number + 1)
                timing.operations = operations[cell, system]
                own = {
                    "round": number,
                    **asdict(cell),
                    "system": system.name,
                    "gamma": 0 if system.gamma == "auto" else system.gamma,
                }
                row = pa.Table.from_pylist([own | timing.to_row()], TABLES["bench"]["timings"])
                part = number * len(places) + places[cell, system]
                out.write(f"part-{part:05d}", {"timings": row})
                yield *turn, timing

    def _engines(self, stack: ExitStack, systems: Collection[System]) -> VllmEngines | None:
        if self.vllm_python is None or not any(system.kind in VLLM for system in systems):
            return None
        longest = max(map(self._longest, self.cells))
        return stack.enter_context(closing(VllmEngines(self.vllm_python, self.pair, longest)))

    def _run(
        self,
        run: Callable[..., T],
        engines: VllmEngines | None,
        cell: Cell,
        system: System,
        tokens: int,
        seed: int,
    ) -> T:
        """Calls `run` with a system and a cell's prompts."""
        load = replace(self.load, batch=cell.batch, tokens=min(tokens, self.load.tokens))
        decoder = engines if engines is not None and system.kind in VLLM else self.pair
        try:
            return run(system, decoder, self._prompts(cell), load, seed)
        except NumericsError as error:
            raise NumericsError(
                f"{system.name} with {cell.batch} texts at once cannot be timed: {error}"
            ) from None

    def _longest(self, cell: Cell) -> int:
        """Tokens of a cell's longest text."""
        return max(map(len, self._prompts(cell))) + self.load.tokens

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

    def _describe(self) -> dict[str, Any]:
        """The run's description."""
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
        if self.vllm_python is not None:
            run["versions"]["vllm"] = vllm_version(self.vllm_python)
        return run

    def _begin(self, out: RunFolder, run: dict[str, Any]) -> list[dict[str, Any]]:
        """Writes the run's description to its folder; returns the rows that are timed already."""
        if out.earlier is not None:
            out.check_same(_must_agree(out.earlier), _must_agree(run))
            run["config"]["rounds"] = max(out.earlier["config"]["rounds"], self.rounds)
        out.begin(run)
        return out.rows("timings")


def _timed(
    system: System,
    decoder: Pair | VllmEngines,
    prompts: Sequence[Sequence[int]],
    load: Load,
    seed: int,
) -> Timing:
    """Decodes every prompt once."""
    if isinstance(decoder, VllmEngines):
        return decoder.decode_once(system, prompts, load, seed)
    return decode_once(system, decoder, prompts, load, seed)


def _warmed_up(
    system: System,
    decoder: Pair | VllmEngines,
    prompts: Sequence[Sequence[int]],
    load: Load,
    seed: int,
) -> float | None:
    """Counts torch operations of a step, which also warms up caches and packed weights."""
    if isinstance(decoder, VllmEngines):
        decoder.decode_once(system, prompts, load, seed)
        return None
    return count_operations(system, decoder, prompts, load)


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
