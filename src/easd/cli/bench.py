"""`easd bench`: times every way to decode in turns, and prints ratios and where time goes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import Group, Parameter
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from easd.cli.bench_tables import breakdown_table, plain_table, ratios_table
from easd.cli.grid_options import load_tasks
from easd.cli.options import MODELS, OUTPUT, Flag, ModelOptions, joined
from easd.core.rules import rule_names
from easd.engine.pair import Pair
from easd.errors import ConfigError
from easd.evaluate.config import StudyConfig
from easd.evaluate.grid import parse_task
from easd.evaluate.prompting import encode_item
from easd.pairs import lab
from easd.pairs.from_config import load_with_status
from easd.speed.bench import Bench, Cell, lines, read_timings
from easd.speed.bench.results import Clock, plot
from easd.speed.bench.roofline import rooflines
from easd.speed.bench.systems import (
    AUTO,
    KINDS,
    TEMPERED,
    UNDRAFTED,
    VLLM,
    Load,
    profiled,
    rule_of,
    systems_of,
)
from easd.speed.plan import CostModel, Shape, measure_here
from easd.speed.plan.measure import describe

_WIDTH = 120
_TOKENS = 64

OfLoad = partial(Parameter, group=Group("Load", sort_key=11))
OfSystems = partial(Parameter, group=Group("Systems", sort_key=12))


def command(
    *, models: ModelOptions = None, asked: Annotated[Benchmark, Parameter(name="*")]
) -> None:
    """Time every way to decode in turns on the same prompts: ratios with intervals."""
    asked.run(asked.study(models or {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """The options.

    Attributes:
        threads: Number of torch's threads.
        task: The task whose prompts are decoded; see `easd tasks`.
        data: A file with the task's items.
        batches: Number of texts decoded at once; may be repeated.
        contexts: Number of tokens to which prompts are cut or repeated; may be repeated.
        tokens: Number of new tokens per text.
        texts: Number of texts per row of the batch.
        temperature: Temperature; 0 decodes greedily.
        rounds: Number of rounds; a finished run can be given more.
        draft_temperature: Draft temperature of the tempered systems.
        kinds: A system: target, generate and assisted (of transformers), speculative, block
            (verified as a whole), adaptive, easd, easd-maximal, easd-adaptive, prompt-lookup,
            with --draft-temperature tempered and block-tempered, or with --vllm-python vllm (the
            target alone) and vllm-speculative. Or any rule with its fields, such as
            pool-everywhere:a=0.9,b=0.2. May be repeated.
        gammas: Draft tokens per block, or auto; may be repeated. Systems with blocks of a fixed
            length run once with each; auto is for lossless ones of this engine.
        tau_h: Entropy threshold in nats.
        vllm_python: Interpreter of an environment with vLLM's CPU build.
        clock: Clock of the ratios: wall time, or processor time, which other processes disturb
            less. With cpu use --threads 1, because waiting threads count.
        profile: Also run torch's profiler once on each system.
        roofline: Measure the machine, and compare the forwards with it.
        out: Folder of the run; a run that was stopped continues.
    """

    threads: Annotated[int | None, Parameter(group=MODELS)] = None
    task: Annotated[str | None, OfLoad(show_default="a lab pair's own, else gsm8k")] = None
    data: Annotated[Path | None, OfLoad()] = None
    batches: Annotated[
        tuple[int, ...], OfLoad(name="--batch", metavar="INT", show_default=joined)
    ] = (1,)
    contexts: Annotated[
        tuple[int, ...], OfLoad(name="--context", metavar="INT", show_default="as they are")
    ] = ()
    tokens: Annotated[
        int | None, OfLoad(show_default=f"{_TOKENS}, or what the context window leaves")
    ] = None
    texts: Annotated[int, OfLoad()] = 2
    temperature: Annotated[float, OfLoad()] = 1.0
    draft_temperature: Annotated[float | None, OfSystems()] = None
    rounds: Annotated[int, OfLoad()] = 5
    kinds: Annotated[
        tuple[str, ...],
        OfSystems(name="--system", metavar="NAME", show_default="all but tempered ones and vLLM's"),
    ] = tuple(kind for kind in KINDS if kind not in TEMPERED + VLLM)
    gammas: Annotated[
        tuple[int | Literal["auto"], ...],
        OfSystems(name="--gamma", metavar="INT|auto", show_choices=False, show_default=joined),
    ] = (4,)
    tau_h: Annotated[float, OfSystems()] = 1.5
    vllm_python: Annotated[Path | None, OfSystems()] = None
    clock: Annotated[Clock, Parameter(group=OUTPUT)] = "wall"
    profile: Annotated[bool, Flag(group=OUTPUT)] = False
    roofline: Annotated[bool, Flag(group=OUTPUT)] = False
    out: Annotated[Path, Parameter(group=OUTPUT)]

    def study(self, models: Mapping[str, Any]) -> StudyConfig:
        """Returns the models, and the task whose prompts are decoded.

        Raises:
            EasdError: A model or the task is unknown.
        """
        pair = models.get("pair")
        own = lab.ALIASES.get(pair or "", pair)
        task = self.task or (own if own in lab.RECIPES else "gsm8k")
        items = parse_task(task).to_dict()
        items["limit"] = min(max(self.batches) * self.texts, items["limit"] or sys.maxsize)
        if self.data is not None:
            items["data"] = str(self.data)
        return StudyConfig.from_dict({**models, "temperature": self.temperature, "tasks": [items]})

    def run(self, study: StudyConfig) -> None:
        """Decodes what is missing, writes the run's folder, and prints the results.

        Raises:
            EasdError: A setting does not fit, or the folder holds something else.
        """
        self._check(study)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        console, aside = Console(), Console(stderr=True)
        console.width = max(console.width, _WIDTH + 20 * len(self._of_vllm))
        pair = load_with_status(study.base, aside)
        self._check_pair(pair, aside)
        bench = self._bench(study, pair)
        total = self.rounds * len(bench.cells) * len(bench.systems)
        with Progress(console=aside, transient=True) as bar:
            task = bar.add_task("decoding", total=total)
            for _, cell, system, _ in bench.run():
                bar.update(task, advance=1, description=f"{system.name}, {cell.batch} at once")
        found = list(lines(read_timings(self.out), self.clock))
        for cell in bench.cells:
            console.print(ratios_table(cell, found, self.clock))
            console.print(breakdown_table(cell, found))
        plot(found, self.out / "ratios.svg")
        if self.roofline:
            console.print(self._rooflines(bench, pair))
        if self.profile:
            text = "\n".join(self._profiles(bench, pair))
            (self.out / "profile.txt").write_text(text, encoding="utf-8")
            console.print(text, highlight=False, soft_wrap=True)
        console.print(f"the run is in {self.out}")

    @property
    def _of_vllm(self) -> set[str]:
        """The systems that vLLM decodes."""
        return set(self.kinds) & set(VLLM)

    def _check(self, study: StudyConfig) -> None:
        for name in ("batches", "contexts", "gammas", "rounds", "tokens", "texts"):
            values = getattr(self, name)
            each = values if isinstance(values, tuple) else (values,)
            if any(isinstance(value, int) and value < 1 for value in each):
                raise ConfigError(f"{name} = {values} holds less than 1; use 1 or more")
        if self.roofline and study.base.int8_draft:
            raise ConfigError(
                "roofline counts weights of one width; leave out --roofline or --int8-draft"
            )
        for kind in self.kinds:
            if kind not in KINDS:
                _check_rule(kind)
            if not systems_of([kind], self.gammas):
                raise ConfigError(
                    f"system {kind!r} has no gamma = 'auto'; add a number, such as --gamma 4, or "
                    f"name others: --system {' --system '.join(AUTO)}"
                )
            if (kind in TEMPERED) and self.draft_temperature is None:
                raise ConfigError(
                    f"system {kind!r} drafts at a temperature; add --draft-temperature"
                )
            if kind in VLLM and study.base.int8_draft:
                raise ConfigError(f"system {kind!r} has no int8 draft; leave out --int8-draft")
            if kind in VLLM and self.vllm_python is None:
                raise ConfigError(
                    f"system {kind!r} needs an environment with vLLM; add --vllm-python "
                    "ENVIRONMENT/bin/python"
                )

    def _check_pair(self, pair: Pair, console: Console) -> None:
        undrafted = (*UNDRAFTED, "prompt-lookup")
        drafting = [kind for kind in self.kinds if kind not in undrafted]
        if pair.draft is None and drafting:
            raise ConfigError(
                f"{', '.join(drafting)}: no draft model given; name one, or leave these systems out"
            )
        if self._of_vllm and pair.target.device.type != "cpu":
            raise ConfigError(
                "vLLM is timed on a CPU only; leave its systems out, or use device cpu"
            )
        if "vllm-speculative" in self.kinds and pair.draft_tokenizer is not None:
            raise ConfigError(
                "vllm-speculative: vLLM samples no drafts with another tokenizer; leave it out"
            )
        if self.clock == "cpu":
            if pair.target.device.type != "cpu":
                raise ConfigError("clock = 'cpu' does not measure a GPU; use wall")
            if torch.get_num_threads() > 1:
                line = (
                    f"torch has {torch.get_num_threads()} threads, and a thread that waits for "
                    "others counts as busy; use --threads 1"
                )
                console.print(Text(line, "yellow"), soft_wrap=True)

    def _bench(self, study: StudyConfig, pair: Pair) -> Bench:
        (task,) = load_tasks(study, Console(stderr=True))
        chat = study.base.chat
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
            systems=systems_of(self.kinds, self.gammas),
            folder=self.out,
            rounds=self.rounds,
            texts=self.texts,
            vllm_python=self.vllm_python if self._of_vllm else None,
            load=Load(
                tokens=self.tokens or max(1, min(_TOKENS, left)),
                temperature=self.temperature,
                draft_temperature=self.draft_temperature,
                tau_h=self.tau_h,
            ),
        )

    def _rooflines(self, bench: Bench, pair: Pair) -> Table:
        costs = CostModel(
            hardware=measure_here(pair.target.dtype, str(pair.target.device)),
            target=Shape.of(pair.target, "target"),
            draft=None if pair.draft is None else Shape.of(pair.draft, "draft"),
        )
        table = plain_table("forward", "texts", "GB", "GFLOP", "least", "forecast", "taken")
        table.title = f"milliseconds of a forward; {describe(costs.hardware)}"
        timings = read_timings(self.out)
        mean = sum(map(len, bench.prompts)) / len(bench.prompts)
        for cell in bench.cells:
            # The table has NaN where prompts keep their length.
            same = timings["context"].fillna(0) == (cell.context or 0)
            context = round(cell.context or mean) + bench.load.tokens // 2
            chosen = timings[(timings["batch"] == cell.batch) & same]
            for each in rooflines(chosen, costs, cell.batch, context):
                numbers = (each.gigabytes, each.gigaflops, each.least_ms, each.forecast_ms)
                cells = [f"{value:.3g}" for value in (*numbers, each.taken_ms)]
                table.add_row(each.what, str(cell.batch), *cells)
        return table

    def _profiles(self, bench: Bench, pair: Pair):
        load = replace(bench.load, batch=self.batches[0], tokens=min(bench.load.tokens, 32))
        for system in bench.systems:
            yield profiled(system, pair, bench.prompts[: self.batches[0]], load)


def _check_rule(kind: str) -> None:
    """Refuses a system that is neither a kind nor a rule."""
    if kind.partition(":")[0] not in rule_names():
        known = ", ".join(KINDS)
        raise ConfigError(f"system {kind!r} is not known; choose from {known}, or name a rule")
    rule_of(kind)
