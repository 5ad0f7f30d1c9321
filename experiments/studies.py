"""What the studies share: thresholds and the pool from text that is not decoded afterwards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from easd import EASD
from easd.cli.diagnose import references
from easd.cli.study import load_tasks, watch
from easd.diagnose.diagnosis import Diagnosis, diagnose
from easd.diagnose.reference_pass import read_positions
from easd.engine.pair import Pair
from easd.evaluate.config import StudyConfig
from easd.evaluate.engine import Evaluation
from easd.report import write_report
from easd.runs import open_run
from easd.tasks import Task

console = Console(stderr=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A threshold for a firing rate, and the pool fitted at its gate."""

    tau_h: float
    a: float
    b: float


def fit(
    pair: Pair, task: Task, config: StudyConfig, rates: Sequence[float], out: Path
) -> dict[float, Fitted]:
    """Reads a task's solutions with both models; thresholds and pools by firing rate.

    The diagnosis is kept as JSON beside the runs.
    """
    found = _diagnosis(pair, task, config, rates)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
    return {
        each.wanted: Fitted(tau_h=round(each.tau_h, 4), a=each.pool.a, b=each.pool.b)
        for each in found.thresholds
        if each.wanted is not None
    }


def _diagnosis(pair: Pair, task: Task, config: StudyConfig, rates: Sequence[float]) -> Diagnosis:
    texts = references(task, pair, config, console)
    table = read_positions(pair, texts, config.base.settings)
    return diagnose(table, tau_h=EASD().tau_h, rates=rates, unique_solution=task.unique_solution)


def evaluate(pair: Pair, config: StudyConfig, folder: Path) -> None:
    """Decodes what is missing of a study."""
    watch(Evaluation(config, pair, load_tasks(config, console), folder), console)


def report(folders: Sequence[Path], out: Path) -> None:
    """Writes the report of finished runs."""
    page = write_report([open_run(folder) for folder in folders], out)
    console.print(Text(f"written to {page}"))
