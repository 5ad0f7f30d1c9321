"""Do two models beat the target at its best temperature? Every rule, greedy, on a `lab` pair.

    python experiments/two_models.py lab-a [--problems 20000] [--models FOLDER] [--out FOLDER]

Powers and thresholds come from problems of the calibration split, which are not decoded for the
result. On these pairs the target's best temperature is 0, so all systems decode greedily and are
compared with the greedy target, problem by problem; three more sample at T = 1. Ends with one table:
accuracy, differences to both baselines, tokens per target forward over lossless greedy speculation,
and the exact accuracy that the calibration problems had foretold. A run that was stopped goes on.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lab import efficiency
from studies import console, evaluate
from transformers.utils import logging

from easd import load_pair
from easd.cli.diagnose import references
from easd.diagnose.effects import solved
from easd.diagnose.pool_fit import FOLDS, fit_pool, pool_laws
from easd.diagnose.positions import Positions, gate, threshold_for
from easd.diagnose.reference_pass import read_positions
from easd.engine.pair import Pair
from easd.evaluate.config import StudyConfig
from easd.pairs.loading import load_models
from easd.report.metrics import frames
from easd.runs import open_run
from easd.stats import compare_all
from easd.tasks import load_task

FIT_PROBLEMS = 5000
BATCH, CHUNK = 250, 1000
GREEDY = "target, greedy"


def systems(fitted: dict[str, dict], rate: float) -> list[dict]:
    """Greedy systems, and the published baseline's own at T = 1."""

    def greedy(name: str, kind: str, **fields: object) -> dict:
        return {"name": name, "rule": {"name": kind, **fields}, "temperature": 0}

    two, eight = ({"tau_h": fitted[r]["tau_h"], "draft_at_bonus": True} for r in ("2 %", "8 %"))
    everywhere = {name: fitted["everywhere"][name] for name in ("a", "b")}
    by_gate = {f"open_{name}": fitted["2 %"][name] for name in ("a", "b")}
    closed = {name: fitted["2 %, closed"][name] for name in ("a", "b")}
    at_two = {name: fitted["2 %"][name] for name in ("a", "b")}
    sampled = {"temperature": 1}
    return [
        greedy(GREEDY, "target"),
        greedy("speculative", "speculative"),
        greedy("draft", "draft"),
        greedy("pool everywhere", "pool-everywhere", **everywhere),
        greedy("pool by gate 2 %", "pool-by-gate", **two, **closed, **by_gate),
        greedy("pool 2 %", "pool", **two, **at_two),
        greedy("easd 2 %", "easd", **two),
        greedy("easd 8 %", "easd", **eight),
        greedy("without overlap", "easd-without-overlap", **two),
        greedy("without draft entropy", "easd-without-draft-entropy", **two),
        greedy("without both", "easd-without-both", **two),
        greedy("random refusal, easd's rate", "random-refusal", rate=rate, draft_at_bonus=True),
        greedy("cascade", "cascade"),
        greedy("relaxed-top-k", "relaxed-top-k"),
        greedy("mars", "mars"),
        greedy("ears", "ears"),
        {"name": "target", "rule": "target", **sampled},
        {"name": "easd 2 %, T = 1", "rule": {"name": "easd", **two}, **sampled},
        {
            "name": "pool everywhere, T = 1",
            "rule": {"name": "pool-everywhere", **everywhere},
            **sampled,
        },
    ]


def fit(pair: Pair, positions: Positions) -> dict[str, dict]:
    """Thresholds and powers by the positions that they are fitted on."""
    everywhere = np.ones(len(positions), dtype=bool)
    found = {"everywhere": (0.0, everywhere)}
    for name, rate in (("2 %", 0.02), ("8 %", 0.08)):
        height = round(threshold_for(positions, rate), 4)
        found[name] = height, gate(positions, height)
    found["2 %, closed"] = found["2 %"][0], ~found["2 %"][1]
    fits = {name: (height, fit_pool(positions, where)) for name, (height, where) in found.items()}
    console.print({name: (height, fit) for name, (height, fit) in fits.items()})
    return {
        name: {"tau_h": height, "a": round(fit.a, 4), "b": round(fit.b, 4)}
        for name, (height, fit) in fits.items()
    }


def foretold(positions: Positions) -> dict[str, float]:
    """Exact accuracies on the calibration problems, the pool's by powers of other problems."""
    everywhere = np.ones(len(positions), dtype=bool)
    folds = (np.arange(positions.n_texts) % FOLDS)[positions.texts]
    best, drawn = np.zeros(len(positions)), np.zeros(len(positions))
    for fold in range(FOLDS):
        own = folds == fold
        fitted = fit_pool(positions, everywhere & ~own)
        best[own], drawn[own] = pool_laws(positions, own, fitted.a, fitted.b)
    laws = {
        GREEDY: positions.values["target_best"].astype(float),
        "speculative": positions.values["target_best"].astype(float),
        "draft": positions.values["draft_best"].astype(float),
        "pool everywhere": best,
        "target": positions.values["target_prob"],
        "pool everywhere, T = 1": drawn,
    }
    return {name: 100 * float(solved(positions, law).mean()) for name, law in laws.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pair")
    parser.add_argument("--problems", type=int, default=20_000)
    parser.add_argument("--models", type=Path, help="folder with target/ and draft/")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    name, models = arguments.pair, arguments.models
    out = arguments.out or Path("runs/two-models") / name
    own = {"target": str(models / "target"), "draft": str(models / "draft")} if models else {}
    pair = load_models(**own, device="cpu") if own else load_pair(name, device="cpu")
    shared = {**(own or {"pair": name}), "batch_size": BATCH, "chunk": CHUNK, "gamma": 4}

    calibration = load_task(name, limit=FIT_PROBLEMS, split="calibration")
    blank = StudyConfig.from_dict({**shared, "tasks": [name]})
    texts = references(calibration, pair, blank, console)
    positions = Positions.of(read_positions(pair, texts, blank.base.settings))
    fitted = fit(pair, positions)
    rate = float(gate(positions, fitted["2 %"]["tau_h"]).mean())

    grid = {**shared, "coupling": None, "systems": systems(fitted, rate), "baselines": False}
    study = {**grid, "tasks": [{"name": name, "limit": arguments.problems}], "trace": 0}
    evaluate(pair, StudyConfig.from_dict(study), out / "run")
    table = summary(out / "run", foretold(positions))
    table.to_csv(out / "summary.csv", index=False)
    print(f"{name}, {arguments.problems:,} problems; powers {fitted['everywhere']}")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


def summary(run: Path, told: dict[str, float]) -> pd.DataFrame:
    """Accuracy, both differences and tokens per forward of each system."""
    opened = open_run(run)
    samples = frames(opened).samples
    forwards = efficiency(samples)
    against = {
        base: {each.system: each for each in compare_all(samples, base)}
        for base in (GREEDY, "target")
    }
    rows = []
    for system in opened.run["systems"]:
        name = system["name"]
        row = {"system": name, "foretold": told.get(name)}
        for base, found in against.items():
            if name in found:
                gap = found[name].difference
                row["accuracy"] = 100 * found[name].accuracy.value
                row[f"- {base}"] = 100 * gap.value
                row[f"± {base}"] = 50 * (gap.high - gap.low)
                row[f"p {base}"] = found[name].p_real
        ratio = forwards.get(name, {})
        row["of lossless"] = ratio.get("of_lossless")
        row["low"], row["high"] = ratio.get("of_lossless_low"), ratio.get("of_lossless_high")
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
