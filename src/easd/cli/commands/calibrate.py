"""`easd calibrate`: a validation set in, thresholds out."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from easd.cli.commands.evaluate import load_tasks, watch
from easd.diagnose.calibration import (
    SOURCES,
    Signals,
    Source,
    firing,
    paper_threshold,
    rate_threshold,
    signals,
    warnings_of,
)
from easd.diagnose.calibration_file import CalibrationFile, data_of, sampling
from easd.engine.pair import fingerprints
from easd.evaluate.config import StudyConfig
from easd.evaluate.engine import Evaluation
from easd.pairs.from_config import load_with_status
from easd.runs import open_run
from easd.stats import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One `easd calibrate`.

    Attributes:
        config: one task, and the one system that `calibration_config` makes.
        out: the artefact's path.
        run: folder of the texts decoded for it.
        source: whose entropies the paper's rule is asked of.
        rate: a wanted firing rate instead of the paper's rule.
    """

    config: StudyConfig
    out: Path
    run_folder: Path
    source: Source = "pooled"
    rate: float | None = None
    quiet: bool = False

    def run(self) -> None:
        """Decodes the validation set, writes the artefact, and says what it found.

        Raises:
            EasdError: Models, tasks, settings or paths do not do.
        """
        console = Console(stderr=True, quiet=self.quiet)
        tasks = load_tasks(self.config, console)
        pair = load_with_status(self.config.base, console)
        watch(Evaluation(self.config, pair, tasks, self.run_folder), console)
        rule: Any = self.config.systems[0].settings.rule
        found = signals(open_run(self.run_folder, "evaluation").tokens, top_n=rule.top_n)
        by_source: dict[Source, Estimate] = {
            source: paper_threshold(found, source) for source in SOURCES
        }
        chosen = by_source[self.source]
        if self.rate is not None:
            chosen = rate_threshold(found, self.rate, rule.tau_o)
        rates = firing(found, chosen.value, rule.tau_o)
        told = warnings_of(rates)
        artefact = CalibrationFile(
            kind="calibration",
            fields={
                "tau_h": chosen.value,
                **{name: getattr(rule, name) for name in ("tau_o", "top_n", "entropy_of")},
            },
            pair=pair.name,
            fingerprints=fingerprints(pair),
            sampling=sampling(self.config.base.settings),
            data=[data_of(task) for task in tasks],
            estimates={
                "method": "mean of the top 5 % entropies" if self.rate is None else "firing rate",
                "source": self.source if self.rate is None else None,
                "wanted_rate": self.rate,
                "tau_h": asdict(chosen),
                "paper_rule": {name: asdict(value) for name, value in by_source.items()},
                "rates": {name: asdict(value) for name, value in rates.items()},
                "texts": found.texts,
                "positions": len(found.text),
                "warnings": told,
            },
        )
        artefact.save(self.out)
        self._show(console, chosen, by_source, rates, found)
        for line in told:
            console.print(Text(f"warning: {line}", "yellow"), soft_wrap=True)
        console.print(Text(f"written to {self.out}; use it with --calibration {self.out}"))

    def _show(
        self,
        console: Console,
        chosen: Estimate,
        by_source: Mapping[Source, Estimate],
        rates: dict[str, Estimate],
        found: Signals,
    ) -> None:
        table = Table("estimate", "value", "95 % interval", title="calibration")
        for source, value in by_source.items():
            table.add_row(f"mean of the top 5 %, {source}", *_nats(value))
        table.add_section()
        table.add_row("tau_h chosen", *_nats(chosen))
        for name, value in rates.items():
            label = "gate open" if name == "gate" else f"{name.replace('_', ' ')} met"
            table.add_row(label, f"{value.value:.3%}", f"{value.low:.3%} to {value.high:.3%}")
        table.caption = f"{len(found.text):,} positions of {found.texts:,} texts"
        console.print(table)


def _nats(value: Estimate) -> tuple[str, str]:
    return f"{value.value:.3f} nats", f"{value.low:.3f} to {value.high:.3f}"


def calibration_config(values: dict[str, Any], gate: dict[str, Any]) -> StudyConfig:
    """A lossless system that asks the draft at every position and records every token.

    Args:
        values: models, tasks and settings, as in an evaluation.
        gate: tau_o, top_n and entropy_of of the rule to calibrate.
    """
    lossless = {"tau_h": math.inf, "draft_at_bonus": True}
    system = {"name": "calibration", "rule": {"name": "easd", **gate, **lossless}}
    grid = {"systems": [system], "baselines": False, "trace": sys.maxsize}
    return StudyConfig.from_dict({**values, **grid})
