"""Do two models beat the target at its best temperature? Every rule, greedy, on a `lab` pair.

    python experiments/two_models.py lab-a [--problems 20000] [--models FOLDER] [--out FOLDER]

What is fitted comes from problems of the calibration split, which are not decoded for the
result. On these pairs the target's best temperature is 0, so all systems decode greedily and are
compared with the greedy target, problem by problem; three more sample at T = 1. Ends with a table:
accuracy, differences to both baselines, tokens per target forward over lossless greedy speculation,
and what tuning on the calibration problems had foretold. Tuning counts a text as right if it is the
written solution, and the last column gives the share of such texts; accuracy is that of the answer.
A run that was stopped goes on.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from lab import efficiency
from studies import evaluate, lab_arguments, lab_pair

from easd.diagnose.candidates import TARGET, cut
from easd.diagnose.pool_fit import PoolFit, fit_pool
from easd.diagnose.positions import gate
from easd.diagnose.references import references
from easd.diagnose.tuning import Candidate, tune
from easd.diagnose.tuning_pass import read
from easd.evaluate.config import StudyConfig
from easd.report.metrics import frames
from easd.runs import open_run
from easd.stats import compare_all
from easd.tasks import load_task

FIT_PROBLEMS = 5000
GREEDY = "target, greedy"


def systems(tuned: dict[str, Candidate], at_tenth: PoolFit, rate: float) -> list[dict]:
    """Greedy systems, and the published baseline's own at T = 1."""

    def greedy(name: str, kind: str, **fields: object) -> dict:
        return {"name": name, "rule": {"name": kind, **fields}, "temperature": 0}

    two = {"tau_h": tuned["EASD, greedy"].rule["tau_h"], "draft_at_bonus": True}
    pool = tuned["pool everywhere, greedy"].rule
    by_gate = tuned["pool by gate, greedy"].rule
    sampled = tuned["pool everywhere, sampled"]
    at_one = {"temperature": 1, "draft_temperature": sampled.draft_temperature}
    return [
        greedy(GREEDY, "target"),
        greedy("speculative", "speculative"),
        greedy("draft", "draft"),
        {"name": "pool everywhere, greedy", "rule": pool, "temperature": 0},
        greedy("the same, plausible 0.1", "pool-everywhere", a=at_tenth.a, b=at_tenth.b),
        {"name": "pool by gate, greedy", "rule": by_gate, "temperature": 0},
        greedy("EASD, greedy", "easd", **two),
        greedy("without overlap", "easd-without-overlap", **two),
        greedy("without draft entropy", "easd-without-draft-entropy", **two),
        greedy("without both", "easd-without-both", **two),
        greedy("random refusal, EASD's rate", "random-refusal", rate=rate, draft_at_bonus=True),
        greedy("cascade", "cascade"),
        greedy("relaxed-top-k", "relaxed-top-k"),
        greedy("mars", "mars"),
        greedy("ears", "ears"),
        {"name": "target, T = 1", "rule": "target", "temperature": 1},
        {"name": "EASD, T = 1", "rule": {"name": "easd", **two}, "temperature": 1},
        {"name": "pool everywhere, sampled", "rule": sampled.rule, **at_one},
    ]


def main() -> None:
    arguments = lab_arguments(__doc__, "runs/two-models").parse_args()
    name = arguments.pair
    out = arguments.out or Path("runs/two-models") / name
    out.parent.mkdir(parents=True, exist_ok=True)
    pair, shared = lab_pair(name, arguments.models)

    calibration = load_task(name, limit=FIT_PROBLEMS, split="calibration")
    blank = StudyConfig.from_dict({**shared, "tasks": [name]})
    texts = references(calibration, pair, blank.base.chat)
    reading = read(pair, texts, blank.base.settings)
    found = tune(reading, gamma=4, unique_solution=True)
    tuned = {each.name: each for each in found.candidates}
    (out.parent / f"{name}.json").write_text(json.dumps(found.to_dict(), indent=1))
    tenth = cut(reading.positions, 0.1)[0]
    at_tenth = fit_pool(tenth, np.ones(len(tenth), dtype=bool))
    rate = float(gate(reading.positions, tuned["EASD, greedy"].rule["tau_h"]).mean())

    compared = systems(tuned, at_tenth, rate)
    grid = {**shared, "coupling": None, "systems": compared, "baselines": False}
    study = {**grid, "tasks": [{"name": name, "limit": arguments.problems}], "trace": 0}
    evaluate(pair, StudyConfig.from_dict(study), out / "run")
    items = load_task(name, limit=arguments.problems).items
    table = summary(out / "run", tuned, {item.id: item.reference for item in items})
    table.to_csv(out / "summary.csv", index=False)
    print(f"{name}, {arguments.problems:,} problems; {tuned['pool everywhere, greedy'].rule}")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


def summary(run: Path, tuned: dict[str, Candidate], solutions: dict[str, str]) -> pd.DataFrame:
    """What was found, and what had been foretold, of each system; `solutions` by item."""
    opened = open_run(run)
    samples = frames(opened).samples
    forwards = efficiency(samples)
    texts = opened.samples.to_pandas()
    written = texts["text"].str.strip() == texts["item"].astype(str).map(solutions)
    as_written = written.groupby(texts["system"].astype(str)).mean()
    against = {
        base: {each.system: each for each in compare_all(samples, base)}
        for base in (GREEDY, "target, T = 1")
    }
    best = tuned[TARGET]
    rows = []
    for system in opened.run["systems"]:
        name = system["name"]
        told = tuned.get({GREEDY: TARGET, "speculative": TARGET}.get(name, name))
        row = {"system": name}
        for base, found in against.items():
            if name in found:
                gap = found[name].difference
                row["accuracy"] = 100 * found[name].accuracy.value
                row[f"- {base}"] = 100 * gap.value
                row[f"± {base}"] = 50 * (gap.high - gap.low)
                row[f"p {base}"] = found[name].p_real
        row["foretold"] = None if told is None or told.gain is None else 100 * told.gain.value
        ratio = forwards.get(name, {})
        row["of lossless"] = ratio.get("of_lossless")
        row["low"], row["high"] = ratio.get("of_lossless_low"), ratio.get("of_lossless_high")
        if told is not None and name != "target, T = 1":
            row["of lossless, foretold"] = told.tokens_per_forward / best.tokens_per_forward
        row["as written"] = 100 * as_written[name]
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
