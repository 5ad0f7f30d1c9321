"""`easd bench`: every way to decode in turn, ratios with intervals, and where time goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table
from rich.text import Text

from easd.cli.commands.evaluate import load_tasks
from easd.engine.pair import Pair
from easd.errors import ConfigError
from easd.evaluate.config import StudyConfig
from easd.evaluate.prompting import encode_item
from easd.pairs.from_config import load_with_status
from easd.runs.schema import PARTS
from easd.speed.bench import Bench, Cell, Line, System, lines, read_timings
from easd.speed.bench.results import BASES, Clock, plot
from easd.speed.bench.roofline import rooflines
from easd.speed.bench.systems import KINDS, Load, profiled
from easd.speed.plan import CostModel, Shape, measure_here
from easd.speed.plan.measure import describe

_WIDTH = 116
_TOKENS = 64
UNDRAFTED = ("target", "adaptive", "easd-adaptive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What is asked.

    Attributes:
        study: the pair and the task whose prompts are decoded.
        kinds: of systems; each that drafts blocks of one length takes part once for every gamma.
        batches, contexts, gammas: see `easd.speed.bench.Cell`.
        tokens: of each text; None for 64, or what the window leaves.
        clock: that the ratios are made of.
        profile: whether torch's profiler looks at each system once.
        roofline: whether the machine is measured and its forwards held against it.
    """

    study: StudyConfig
    kinds: tuple[str, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    gammas: tuple[int, ...]
    rounds: int
    tokens: int | None
    texts: int
    tau_h: float
    threads: int | None
    clock: Clock
    out: Path
    profile: bool
    roofline: bool

    def run(self) -> None:
        """Decodes what is missing, writes the run's folder, and prints what came of it.

        Raises:
            EasdError: A setting does not fit, or the folder holds something else.
        """
        self._check()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        console, aside = Console(), Console(stderr=True)
        console.width = max(console.width, _WIDTH)
        pair = load_with_status(self.study.base, aside)
        self._check_pair(pair, aside)
        bench = self._bench(pair)
        total = self.rounds * len(bench.cells) * len(bench.systems)
        with Progress(console=aside, transient=True) as bar:
            task = bar.add_task("decoding", total=total)
            for _, cell, system, _ in bench.run():
                bar.update(task, advance=1, description=f"{system.name}, {cell.batch} at once")
        found = list(lines(read_timings(self.out), self.clock))
        for cell in bench.cells:
            console.print(_ratios(cell, found, self.clock))
            console.print(_breakdown(cell, found))
        plot(found, self.out / "ratios.svg")
        if self.roofline:
            console.print(self._rooflines(bench, pair))
        if self.profile:
            text = "\n".join(self._profiles(bench, pair))
            (self.out / "profile.txt").write_text(text, encoding="utf-8")
            console.print(text, highlight=False, soft_wrap=True)
        console.print(f"the run is in {self.out}")

    def _check(self) -> None:
        for name in ("batches", "contexts", "gammas", "rounds", "tokens", "texts"):
            values = getattr(self, name)
            each = values if isinstance(values, tuple) else (values,)
            if any(value is not None and value < 1 for value in each):
                raise ConfigError(f"{name} = {values} holds less than 1; use 1 or more")
        if self.roofline and self.study.base.int8_draft:
            raise ConfigError("roofline counts weights of one width; leave out it or int8_draft")
        for kind in self.kinds:
            if kind not in KINDS:
                raise ConfigError(f"system {kind!r} is not known; choose from {', '.join(KINDS)}")

    def _check_pair(self, pair: Pair, console: Console) -> None:
        drafting = [kind for kind in self.kinds if kind not in ("target", "prompt-lookup")]
        if pair.draft is None and drafting:
            raise ConfigError(
                f"{', '.join(drafting)}: no draft model given; name one, or leave these systems out"
            )
        if self.clock == "cpu":
            if pair.target.device.type != "cpu":
                raise ConfigError("clock = 'cpu' does not see what a GPU computes; use wall")
            if torch.get_num_threads() > 1:
                console.print(
                    Text(
                        f"torch has {torch.get_num_threads()} threads: the processor time of one "
                        "that waits for others counts, too; --threads 1 has none",
                        "yellow",
                    ),
                    soft_wrap=True,
                )

    def _bench(self, pair: Pair) -> Bench:
        (task,) = load_tasks(self.study, Console(stderr=True))
        chat = self.study.base.chat
        prompts = [encode_item(item, task, pair.tokenizer, chat) for item in task.items]
        window = pair.context_window
        left = window - max(self.contexts or map(len, prompts)) if window else _TOKENS
        return Bench(
            pair=pair,
            prompts=prompts,
            cells=[
                Cell(b, c)
                for b in dict.fromkeys(self.batches)
                for c in dict.fromkeys(self.contexts or (None,))
            ],
            systems=list(self._systems()),
            folder=self.out,
            rounds=self.rounds,
            tokens=self.tokens or max(1, min(_TOKENS, left)),
            texts=self.texts,
            temperature=self.study.base.settings.temperature,
            tau_h=self.tau_h,
        )

    def _systems(self):
        for kind in dict.fromkeys(self.kinds):
            assert kind in KINDS
            if kind in UNDRAFTED:
                yield System(kind)
            else:
                yield from (System(kind, gamma) for gamma in dict.fromkeys(self.gammas))

    def _rooflines(self, bench: Bench, pair: Pair) -> Table:
        costs = CostModel(
            hardware=measure_here(pair.target.dtype, str(pair.target.device)),
            target=Shape.of(pair.target, "target"),
            draft=None if pair.draft is None else Shape.of(pair.draft, "draft"),
        )
        table = _table("forward", "texts", "GB", "GFLOP", "least", "forecast", "taken")
        table.title = f"milliseconds of a forward; {describe(costs.hardware)}"
        timings = read_timings(self.out)
        for cell in bench.cells:
            same = (
                timings["context"].isna()
                if cell.context is None
                else (timings["context"] == cell.context)
            )
            mean = sum(map(len, bench.prompts)) / len(bench.prompts)
            context = round(cell.context or mean) + bench.tokens // 2
            chosen = timings[(timings["batch"] == cell.batch) & same]
            for each in rooflines(chosen, costs, cell.batch, context):
                numbers = (each.gigabytes, each.gigaflops, each.least_ms, each.forecast_ms)
                cells = [f"{value:.3g}" for value in (*numbers, each.taken_ms)]
                table.add_row(each.what, str(cell.batch), *cells)
        return table

    def _profiles(self, bench: Bench, pair: Pair):
        load = Load(
            batch=self.batches[0],
            tokens=min(bench.tokens, 32),
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


def _ratios(cell: Cell, found: Sequence[Line], clock: Clock) -> Table:
    here = _here(cell, found)
    bases = [base for base in BASES if any(base in line.over for line in here)]
    per = "a second" if clock == "wall" else "a second of processor time"
    limits = ("decoding", "of theorem", "of bound")
    table = _table("system", "tok/s", *(f"/ {base}" for base in bases), *limits)
    table.title = f"{_title(cell)}: tokens {per}, ratios round by round [95 %]"
    for line in here:
        ratios = [line.over.get(base) for base in bases]
        shares = [line.efficiency(limit) for limit in (line.theorem, line.bound)]
        table.add_row(
            line.system,
            f"{line.speed:.1f}",
            *("" if r is None else f"{r.value:.3f}\n{r.low:.3f} to {r.high:.3f}" for r in ratios),
            _number(line.decoding, 3) if "target" in line.over else "",
            *(_number(share, 2) for share in shares),
        )
    return table


def _breakdown(cell: Cell, found: Sequence[Line]) -> Table:
    """Where tokens and time go, with the two factors of the ratio to `speculative`."""
    columns = ("kept", "penal.", "tok/fwd", "ms/step", "x tok", "x steps")
    table = _table("system", *columns, *PARTS, "other")
    table.title = f"{_title(cell)}: tokens, steps (x: over speculative's), and time in percent"
    for line in _here(cell, found):
        if line.parts is None or line.step_ms is None:
            continue
        parts = [100 * line.parts[part] for part in PARTS]
        over = line.over.get("speculative")
        table.add_row(
            line.system,
            _number(line.acceptance, 3),
            _number(line.penalty_rate, 4),
            _number(line.per_forward, 2),
            f"{line.step_ms:,.2f}",
            _number(over and over.tokens, 3),
            _number(over and over.steps, 3),
            *(f"{part:.1f}" for part in (*parts, 100 - sum(parts))),
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(first: str, *others: str) -> Table:
    look: dict[str, Any] = {
        "box": box.SIMPLE_HEAD,
        "title_justify": "left",
        "padding": (0, 1, 0, 0),
    }
    table = Table(Column(first, no_wrap=True), **look)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
