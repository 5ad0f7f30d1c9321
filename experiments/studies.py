"""What the studies share: thresholds and the pool from text that is not decoded afterwards."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text
from transformers.utils import logging

from easd import EASD, load_pair
from easd.cli.grid_options import load_tasks, watch
from easd.diagnose.diagnosis import Diagnosis, diagnose
from easd.diagnose.reference_pass import read_positions
from easd.diagnose.references import references
from easd.engine.pair import Pair
from easd.evaluate.config import StudyConfig
from easd.evaluate.engine import Evaluation
from easd.pairs.loading import load_models
from easd.report import write_report
from easd.runs import open_run
from easd.tasks import Task

console = Console(stderr=True)
BATCH, CHUNK = 250, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A threshold for a firing rate, and the pool fitted at its gate."""

    tau_h: float
    a: float
    b: float


def lab_arguments(description: str, out: str) -> argparse.ArgumentParser:
    """Returns a parser for the arguments that studies of a `lab` pair share."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("pair")
    parser.add_argument("--problems", type=int, default=20_000)
    parser.add_argument("--models", type=Path, help="folder with target/ and draft/")
    parser.add_argument("--out", type=Path, help=f"unless given, {out}/PAIR")
    return parser


def lab_pair(name: str, models: Path | None) -> tuple[Pair, dict[str, object]]:
    """Loads a `lab` pair, or models of its kind; returns it and the settings of its studies."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    grid = {"batch_size": BATCH, "chunk": CHUNK, "gamma": 4}
    if models is None:
        return load_pair(name, device="cpu"), {"pair": name, **grid}
    own = {"target": str(models / "target"), "draft": str(models / "draft")}
    return load_models(**own, device="cpu"), {**own, **grid}


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
    texts = references(task, pair, config.base.chat)
    table = read_positions(pair, texts, config.base.settings)
    return diagnose(table, tau_h=EASD().tau_h, rates=rates, unique_solution=task.unique_solution)


def evaluate(pair: Pair, config: StudyConfig, folder: Path) -> None:
    """Decodes what is missing of a study."""
    watch(Evaluation(config, pair, load_tasks(config, console), folder), console)


def report(folders: Sequence[Path], out: Path) -> None:
    """Writes the report of finished runs."""
    page = write_report([open_run(folder) for folder in folders], out)
    console.print(Text(f"written to {page}"))
