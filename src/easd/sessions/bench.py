"""`easd bench`: every way to decode in turn, ratios with intervals, and where time goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from easd.bench import Bench, Cell, Line, System, lines, read_timings
from easd.bench.floors import floors
from easd.bench.plots import plot
from easd.bench.profile import profiled
from easd.bench.systems import KINDS, Load
from easd.engine.models import Pair
from easd.errors import ConfigError
from easd.loading import load_with_status
from easd.planning import Machine, Shape, measure_here
from easd.planning.measure import describe
from easd.sessions.evaluate import load_tasks
from easd.study.config import StudyConfig
from easd.study.prompting import encode_item
from easd.trace.schema import PARTS

_WIDTH = 116
BASES = ("target", "speculative", "assisted")
UNDRAFTED = ("target", "adaptive", "easd-adaptive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What is asked.

    Attributes:
        study: the pair and the task whose prompts are decoded.
        kinds: of systems; each that drafts blocks of one length takes part once for every gamma.
        batches, contexts, gammas: see `easd.bench.Cell`.
        profile: whether torch's profiler looks at each system once.
        roofline: whether the machine is measured and its forwards held against it.
    """

    study: StudyConfig
    kinds: tuple[str, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    gammas: tuple[int, ...]
    rounds: int
    tokens: int
    texts: int
    tau_h: float
    threads: int | None
    out: Path
    profile: bool
    roofline: bool

    def run(self) -> None:
        """Decodes, writes the run's folder, and prints what came of it.

        Raises:
            EasdError: A setting does not fit, or the folder holds something.
        """
        self._check()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        console = Console()
        console.width = max(console.width, _WIDTH)
        pair = load_with_status(self.study.base, Console(stderr=True))
        bench = self._bench(pair)
        total = self.rounds * len(bench.cells) * len(bench.systems)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("decoding", total=total)
            for _, cell, system, _ in bench.run():
                bar.update(task, advance=1, description=f"{system.name}, {cell.batch} at once")
        found = list(lines(read_timings(self.out), self._bases(bench.systems)))
        for cell in bench.cells:
            console.print(_ratios(cell, found))
            console.print(_breakdown(cell, found))
        plot(found, self.out / "ratios.svg")
        if self.roofline:
            console.print(self._floors(bench, pair))
        if self.profile:
            text = "\n".join(self._profiles(bench, pair))
            (self.out / "profile.txt").write_text(text, encoding="utf-8")
            console.print(text, highlight=False, soft_wrap=True)
        console.print(f"the run is in {self.out}")

    def _check(self) -> None:
        for name in ("batches", "contexts", "gammas", "rounds", "tokens", "texts"):
            values = getattr(self, name)
            if min(values if isinstance(values, tuple) else (values,), default=1) < 1:
                raise ConfigError(f"{name} = {values} holds less than 1; use 1 or more")
        for kind in self.kinds:
            if kind not in KINDS:
                raise ConfigError(f"system {kind!r} is not known; choose from {', '.join(KINDS)}")

    def _bench(self, pair: Pair) -> Bench:
        (task,) = load_tasks(self.study, Console(stderr=True))
        chat = self.study.base.chat
        return Bench(
            pair=pair,
            prompts=[encode_item(item, task, pair.tokenizer, chat) for item in task.items],
            cells=[Cell(b, c) for b in self.batches for c in self.contexts or (None,)],
            systems=list(self._systems()),
            folder=self.out,
            rounds=self.rounds,
            tokens=self.tokens,
            texts=self.texts,
            temperature=self.study.base.settings.temperature,
            tau_h=self.tau_h,
        )

    def _systems(self):
        for kind in self.kinds:
            assert kind in KINDS
            if kind in UNDRAFTED:
                yield System(kind)
            else:
                yield from (System(kind, gamma) for gamma in self.gammas)

    def _bases(self, systems: Sequence[System]) -> tuple[str, ...]:
        """The first system of each kind that others are compared with."""
        firsts = {}
        for system in systems:
            firsts.setdefault(system.kind, system.name)
        return tuple(firsts[base] for base in BASES if base in firsts)

    def _floors(self, bench: Bench, pair: Pair) -> Table:
        assert pair.draft is not None
        machine = Machine(
            hardware=measure_here(pair.target.dtype, str(pair.target.device)),
            target=Shape.of(pair.target, "target"),
            draft=Shape.of(pair.draft, "draft"),
        )
        table = _table("forward", "texts", "GB", "GFLOP", "least", "forecast", "taken")
        table.title = f"milliseconds of a forward; {describe(machine.hardware)}"
        timings = read_timings(self.out)
        for cell in bench.cells:
            same = (
                timings["context"].isna()
                if cell.context is None
                else (timings["context"] == cell.context)
            )
            mean = sum(map(len, bench.prompts)) / len(bench.prompts)
            context = round(cell.context or mean) + self.tokens // 2
            chosen = timings[(timings["batch"] == cell.batch) & same]
            for floor in floors(chosen, machine, cell.batch, context):
                numbers = (floor.gigabytes, floor.gigaflops, floor.least_ms, floor.forecast_ms)
                cells = [f"{value:.3g}" for value in (*numbers, floor.taken_ms)]
                table.add_row(floor.what, str(cell.batch), *cells)
        return table

    def _profiles(self, bench: Bench, pair: Pair):
        load = Load(
            batch=self.batches[0],
            tokens=min(self.tokens, 32),
            temperature=bench.temperature,
            tau_h=self.tau_h,
        )
        for system in bench.systems:
            yield profiled(system, pair, bench.prompts[: self.batches[0]], load)


def _here(cell: Cell, found: Sequence[Line]) -> list[Line]:
    return [each for each in found if (each.batch, each.context) == (cell.batch, cell.context)]


def _title(cell: Cell) -> str:
    prompts = "" if cell.context is None else f", prompts of {cell.context} tokens"
    return f"{cell.batch} at once{prompts}"


def _ratios(cell: Cell, found: Sequence[Line]) -> Table:
    here = _here(cell, found)
    bases = sorted({name for line in here for name in line.over}, key=_base_order)
    over = [f"/ {base}" for base in bases]
    table = _table("system", "tok/s", *over, "of theorem", "of bound")
    table.title = f"{_title(cell)}: tokens a second, ratios round by round [95 %]"
    for line in here:
        ratios = [line.over.get(base) for base in bases]
        shares = [line.efficiency(limit) for limit in (line.theorem, line.bound)]
        table.add_row(
            line.system,
            f"{line.speed:.1f}",
            *("" if r is None else f"{r.value:.3f}\n{r.low:.3f} to {r.high:.3f}" for r in ratios),
            *("" if share is None else f"{share:.2f}" for share in shares),
        )
    return table


def _base_order(name: str) -> int:
    return BASES.index(name.partition(" ")[0])


def _breakdown(cell: Cell, found: Sequence[Line]) -> Table:
    table = _table("system", "kept", "penal.", "tok/fwd", *PARTS, "other")
    table.title = f"{_title(cell)}: tokens, and the step's time in percent"
    for line in _here(cell, found):
        if line.parts is None:
            continue
        parts = [100 * line.parts[part] for part in PARTS]
        table.add_row(
            line.system,
            "" if line.acceptance is None else f"{line.acceptance:.3f}",
            "" if line.penalty_rate is None else f"{line.penalty_rate:.4f}",
            "" if line.per_forward is None else f"{line.per_forward:.2f}",
            *(f"{part:.1f}" for part in (*parts, 100 - sum(parts))),
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(Column(first, no_wrap=True), box=box.SIMPLE_HEAD, title_justify="left")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
