"""`easd plan`: forecasts of a pair's speed on other hardware."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from easd.cli.options import MODELS, joined
from easd.config import RunConfig
from easd.errors import ConfigError
from easd.pairs.from_config import load_with_status
from easd.runs import open_run
from easd.speed.plan import (
    Acceptance,
    CostModel,
    Forecast,
    Hardware,
    Shape,
    measure_here,
    parse_hardware,
    plan,
)
from easd.speed.plan.measure import describe

HERE = "here"
_TEXTS = (1, 8, 32, 128, 512)


def command(*, asked: Annotated[Plan | None, Parameter(name="*")] = None) -> None:
    """Forecast tokens per second and their price on other hardware, and when not to draft."""
    (asked or Plan()).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The options, each of which may be repeated where it takes several values.

    Attributes:
        pair: An embedded pair; see `easd pairs`.
        target: The target: a hub id, a folder or a config.json; weights are not needed.
        draft: The draft, likewise.
        on: A device, such as h100 or h100:8; a YAML file that describes one; or `here`, to measure
            this machine.
        price: Price of one device for an hour.
        trace: A recorded run of the pair, from which acceptance rates are taken.
        acceptance: The acceptance rate, where there is no recorded run.
        texts: Number of texts decoded at once; may be repeated.
        gammas: Draft tokens per block; may be repeated.
        context: Tokens of a text, prompt included, halfway through its decoding.
    """

    pair: Annotated[str | None, Parameter(group=MODELS)] = None
    target: Annotated[str | None, Parameter(group=MODELS)] = None
    draft: Annotated[str | None, Parameter(group=MODELS)] = None
    on: str = HERE
    price: float | None = None
    trace: Path | None = None
    acceptance: float | None = None
    texts: Annotated[tuple[int, ...], Parameter(metavar="INT", show_default=joined)] = _TEXTS
    gammas: Annotated[
        tuple[int, ...], Parameter(name="--gamma", metavar="INT", show_default=joined)
    ] = (1, 3, 5, 8)
    context: int = 1024

    def run(self) -> None:
        """Prints tokens per second by number of texts and gamma.

        Raises:
            EasdError: A model, device or trace is unknown, or no acceptance is given.
        """
        kept = self._acceptance()
        target, draft = self._shapes()
        costs = CostModel(hardware=self._hardware(), target=target, draft=draft)
        cells = plan(costs, kept, texts=self.texts, gammas=self.gammas, context=self.context)
        console = Console()
        console.print(_title(costs, kept, self.context))
        console.print(_table(cells, self.gammas))
        advice = _advice(cells, self.texts)
        if not any(cell.fits for cell in cells):
            advice = [_nothing_fits(costs, self.texts, self.gammas, self.context)]
        for line in advice:
            console.print(Text(line), soft_wrap=True)

    def _acceptance(self) -> Acceptance:
        if self.trace is not None and self.acceptance is None:
            return Acceptance.of(open_run(self.trace, "trace"))
        if self.acceptance is not None and self.trace is None:
            return Acceptance(rates=(self.acceptance,))
        raise ConfigError(
            "the acceptance rate is missing or given twice; give one of --trace and --acceptance"
        )

    def _shapes(self) -> tuple[Shape, Shape]:
        if self.pair is not None and self.target is self.draft is None:
            pair = load_with_status(RunConfig(pair=self.pair), Console(stderr=True))
            assert pair.draft is not None, "embedded pairs have both"
            return Shape.of(pair.target, f"{pair.name}'s target"), Shape.of(pair.draft, "its draft")
        if self.pair is None and self.target is not None and self.draft is not None:
            return Shape.named(self.target), Shape.named(self.draft)
        raise ConfigError("give an embedded --pair, or both --target and --draft")

    def _hardware(self) -> Hardware:
        for name in ("texts", "gammas"):
            if min(getattr(self, name)) < 1:
                raise ConfigError(f"{name} = {min(getattr(self, name))} is none; use 1 or more")
        if self.on == HERE:
            return replace(measure_here(), price=self.price)
        return parse_hardware(self.on, self.price)


def _title(costs: CostModel, kept: Acceptance, context: int) -> str:
    hardware = costs.hardware
    assert costs.draft is not None
    count = f"{hardware.devices} x " if hardware.devices > 1 else ""
    measured = f" ({describe(hardware)})" if hardware.products else ""
    rates = ", ".join(f"{rate:.2f}" for rate in kept.rates)
    return (
        f"{costs.target.name} ({costs.target.parameters / 1e9:.3g} billion weights) with "
        f"{costs.draft.name} ({costs.draft.parameters / 1e9:.3g}) on "
        f"{count}{hardware.name}{measured}; {context} tokens of context; acceptance rates by "
        f"position: {rates}"
    )


def _table(cells: Sequence[Forecast], gammas: Sequence[int]) -> Table:
    table = Table("texts", "target alone", *(f"gamma {gamma}" for gamma in gammas))
    priced = any(cell.price is not None for cell in cells)
    table.title = "tokens per second, over the target alone" + ", price of a million" * priced
    table.show_lines = True
    for column in table.columns:
        column.justify = "right"
    for count in dict.fromkeys(cell.texts for cell in cells):
        table.add_row(str(count), *(_cell(cell) for cell in cells if cell.texts == count))
    return table


def _cell(cell: Forecast) -> str:
    if not cell.fits:
        return "does not fit"
    lines = [f"{cell.tokens_per_second:,.0f}", f"{cell.improvement:.2f}x" if cell.gamma else ""]
    if cell.price is not None:
        lines.append(f"{cell.price:.2f}")
    return "\n".join(lines)


def _nothing_fits(
    costs: CostModel, texts: Sequence[int], gammas: Sequence[int], context: int
) -> str:
    """Says how much memory is missing, and how many devices have enough."""
    hardware, fewest, gamma = costs.hardware, min(texts), min(gammas)

    def count(gamma: int) -> str:
        devices = costs.devices_needed(fewest, gamma, context)
        return "no number of them" if devices is None else f"{devices} of them"

    missing = costs.missing_bytes(fewest, 0, context) / 1e9
    with_draft = costs.missing_bytes(fewest, gamma, context) / 1e9
    texts_at_once = f"{fewest} text{'s' if fewest > 1 else ''} at once"
    return (
        f"nothing fits: {hardware.devices} x {hardware.name} offers "
        f"{hardware.devices * costs.usable_bytes / 1e9:.3g} GB to use; for {texts_at_once} the "
        f"target alone lacks {missing:.3g} GB and fits on {count(0)}, the pair at gamma {gamma} "
        f"lacks {with_draft:.3g} GB and fits on {count(gamma)}"
    )


def _advice(cells: Sequence[Forecast], texts: Sequence[int]) -> list[str]:
    fitting = [cell for cell in cells if cell.fits]
    best = {}
    for count in texts:
        here = [cell for cell in fitting if cell.texts == count]
        if here:
            best[count] = max(here, key=lambda cell: cell.tokens_per_second)
    lines = [f"best gamma: {', '.join(f'{best[n].gamma} at {n}' for n in best)} texts at once"]
    never = [count for count, cell in best.items() if not cell.gamma]
    if never:
        lines.append(f"speculation stops paying at {min(never)} texts at once")
    else:
        lines.append("speculation pays at every number of texts that fits")
    lines.append("a forecast from bytes and arithmetic, not a measurement")
    return lines
