"""Every system on a `lab` pair, decoded, with the statistics that go with it.

    python experiments/lab.py lab-a [--problems 20000] [--models FOLDER] [--out runs/lab/lab-a]

Thresholds (the paper's rule; 0.5, 2 and 8 % of positions) and the pool come from problems of the
calibration split, which are not decoded for the result. Accuracy is decoded under shared noise, so
that systems can be paired; tokens per target forward come from a second, shorter run with
independent noise, which is how systems are deployed. Ends with one table of both, the report, and
what the diagnosis had said without decoding. A run that was stopped goes on.

`--models` takes a folder with target/ and draft/ trained with another seed by
`experiments/training/lab.py`.
"""

import json
from pathlib import Path

import pandas as pd
from studies import Fitted, console, evaluate, fit, lab_arguments, lab_pair, report

from easd.cli.calibrate import calibration_config
from easd.diagnose.calibration import SOURCES, paper_threshold, signals
from easd.evaluate.config import StudyConfig
from easd.report.metrics import frames
from easd.runs import open_run
from easd.stats import bootstrap, compare_all
from easd.tasks import load_task

RATES = (0.005, 0.02, 0.08)
# What the diagnosis calls the systems that it foretells, and at which rate.
FORETOLD = {
    "draft": (0.02, "draft"),
    "easd 0.5 %": (0.005, "easd"),
    "easd 2 %": (0.02, "easd"),
    "easd 8 %": (0.08, "easd"),
    "easd 2 %, draft's top token": (0.02, "easd-draft-top"),
    "easd 2 %, asked of accepted": (0.02, "easd-on-accepted"),
    "without overlap": (0.02, "easd-without-overlap"),
    "without draft entropy": (0.02, "easd-without-draft-entropy"),
    "without both": (0.02, "easd-without-both"),
    "overlap only": (0.02, "overlap-only"),
    "random refusal, easd's rate": (0.02, "random refusal"),
    "pool 2 %": (0.02, "pool"),
    "pool 8 %": (0.08, "pool"),
    "greedy p 2 %": (0.02, "greedy-p"),
    "sharpened 2 %": (0.02, "sharpened"),
    "keep near top 2 %": (0.02, "keep-near-top"),
    "keep near top 8 %": (0.08, "keep-near-top"),
    "contrast 2 %": (0.02, "contrast"),
    "typical acceptance": (0.02, "typical-acceptance"),
    "lenience 0.5": (0.02, "lenience"),
    "ensemble 0.5": (0.02, "ensemble"),
    "target, temperature 0.5": (0.02, "half temperature"),
    "target, greedy": (0.02, "greedy everywhere"),
}
FIT_PROBLEMS = 5000
CALIBRATION_TEXTS = 1000
HEADLINE = (
    *("target", "speculative", "easd 2 %", "random refusal, easd's rate", "pool 2 %", "pool 8 %"),
    *("keep near top 2 %", "pool, keep near top 2 %", "relaxed pool 2 %", "relaxed pool 8 %"),
    *("typical acceptance", "speculative, temperature 0.5"),
)


def systems(fitted: dict[float, Fitted], paper: float, rate: float, reward: str) -> list[dict]:
    """Everything that is compared; gates cover the bonus position, as the law of a text asks."""
    low, two, eight = (fitted[r] for r in RATES)

    def rule(name: str, kind: str, at: Fitted = two, **fields: object) -> dict:
        gate = {"tau_h": at.tau_h, "draft_at_bonus": True}
        return {"name": name, "rule": {"name": kind, **gate, **fields}}

    overlap = {"name": "overlap-only", "draft_at_bonus": True}
    refusal = {"name": "random-refusal", "rate": rate, "draft_at_bonus": True}
    return [
        {"name": "target", "rule": "target"},
        {"name": "draft", "rule": "draft"},
        {"name": "speculative", "rule": "speculative"},
        rule("easd, paper's tau_h", "easd", tau_h=paper),
        rule("easd 0.5 %", "easd", low),
        rule("easd 2 %", "easd"),
        rule("easd 8 %", "easd", eight),
        {**rule("easd 2 %, maximal coupling", "easd"), "coupling": "maximal"},
        rule("easd 2 %, bonus ungated", "easd", draft_at_bonus=False),
        rule("easd 2 %, draft's top token", "easd", penalise="draft_top"),
        rule("easd 2 %, asked of accepted", "easd", gate_on="accepted"),
        rule("easd 2 %, redraw from target", "easd", redraw="target"),
        rule("without overlap", "easd-without-overlap"),
        rule("without draft entropy", "easd-without-draft-entropy"),
        rule("without both", "easd-without-both"),
        {"name": "overlap only", "rule": overlap},
        {"name": "random refusal, easd's rate", "rule": refusal},
        rule("pool 2 %", "pool", a=two.a, b=two.b),
        rule("pool 8 %", "pool", eight, a=eight.a, b=eight.b),
        rule("greedy p 2 %", "greedy-p"),
        rule("sharpened 2 %", "sharpened"),
        rule("keep near top 2 %", "keep-near-top"),
        rule("keep near top 8 %", "keep-near-top", eight),
        rule("pool, keep near top 2 %", "keep-near-top", **pooled(two)),
        rule("pool, keep near top 8 %", "keep-near-top", eight, **pooled(eight)),
        rule("relaxed pool 2 %", "relaxed-pool", **pooled(two)),
        rule("relaxed pool 8 %", "relaxed-pool", eight, **pooled(eight)),
        rule("contrast 2 %", "contrast"),
        {"name": "typical acceptance", "rule": "typical-acceptance"},
        {"name": "lenience 0.5", "rule": "lenience"},
        {"name": "ensemble 0.5", "rule": "ensemble"},
        {"name": "fly", "rule": {"name": "fly", "tau_h": two.tau_h, "window": 2}},
        {"name": "rsd 0.7", "rule": {"name": "rsd", "delta": 0.7, "model": reward}},
        {"name": "speculative, temperature 0.5", "rule": "speculative", "temperature": 0.5},
    ]


def pooled(fitted: Fitted) -> dict[str, float]:
    """Fields that make a rule judge tokens by the fitted pool instead of the target alone."""
    return {"a": fitted.a, "b": fitted.b, "plausible": 0.1}


def main() -> None:
    parser = lab_arguments(__doc__, "runs/lab")
    parser.add_argument("--short", action="store_true", help="the headline's systems only")
    arguments = parser.parse_args()
    name = arguments.pair
    out = arguments.out or Path("runs/lab") / name
    pair, shared = lab_pair(name, arguments.models)

    calibration = load_task(name, limit=FIT_PROBLEMS, split="calibration")
    blank = StudyConfig.from_dict({**shared, "tasks": [name]})
    fitted = fit(pair, calibration, blank, RATES, out / "diagnosis.json")
    texts = {"name": name, "limit": CALIBRATION_TEXTS, "split": "calibration"}
    lossless = calibration_config({**shared, "tasks": [texts]}, {"tau_o": 0.8, "top_n": 5})
    evaluate(pair, lossless, out / "calibration")
    found = signals(open_run(out / "calibration").tokens)
    paper = {source: paper_threshold(found, source) for source in SOURCES}
    rate = float(found.met(fitted[0.02].tau_h, 0.8)["gate"].mean())
    console.print(f"{name}: {fitted}, paper's rule {paper['pooled']}, 2 % fires at {rate:.2%}")

    grid = {**shared, "systems": systems(fitted, round(paper["pooled"].value, 4), rate, name)}
    if arguments.short:
        grid["systems"] = [each for each in grid["systems"] if each["name"] in HEADLINE]
    test = {"name": name, "limit": arguments.problems}
    paired = StudyConfig.from_dict({**grid, "tasks": [test], "trace": 2000})
    evaluate(pair, paired, out / "paired")
    fast = {**test, "limit": max(arguments.problems // 4, 1)}
    deployed = {**grid, "tasks": [fast], "coupling": None, "trace": 0}
    evaluate(pair, StudyConfig.from_dict(deployed), out / "deployed")
    table = summary(out)
    table.to_csv(out / "summary.csv", index=False)
    print(f"\n{name}, {arguments.problems} problems\n{shown(table)}")
    report([out / "paired", out / "deployed"], out / "report")


def summary(out: Path) -> pd.DataFrame:
    """Accuracy and paired difference to the target, and tokens per target forward as deployed."""
    paired = frames(open_run(out / "paired")).samples
    deployed = frames(open_run(out / "deployed")).samples
    forwards = efficiency(deployed)
    foretold = diagnosed(out / "diagnosis.json")
    rows = []
    for each in compare_all(paired, "target"):
        gap = each.difference
        rows.append(
            {
                "system": each.system,
                "accuracy": 100 * each.accuracy.value,
                "accuracy_low": 100 * each.accuracy.low,
                "accuracy_high": 100 * each.accuracy.high,
                "minus_target": 100 * gap.value,
                "low": 100 * gap.low,
                "high": 100 * gap.high,
                "p_holm": each.p_real,
                "narrower": gap.narrowing,
                "foretold": foretold.get(each.system),
                **forwards.get(each.system, {}),
            }
        )
    base = compare_all(paired, "target")[0].baseline_accuracy
    first = {"system": "target", "accuracy": 100 * base.value, "accuracy_low": 100 * base.low}
    first |= {"accuracy_high": 100 * base.high, **forwards["target"]}
    order = [str(system["name"]) for system in open_run(out / "paired").run["systems"]]
    table = pd.DataFrame([first, *rows])
    return table.sort_values("system", key=lambda names: names.map(order.index))


def diagnosed(path: Path) -> dict[str, float]:
    """Changes in points that the diagnosis foretold, of writing the one reference solution."""
    thresholds = {each["wanted"]: each for each in json.loads(path.read_text())["thresholds"]}
    return {
        system: 100 * effect["change"]["value"]
        for system, (rate, rule) in FORETOLD.items()
        for effect in thresholds[rate]["effects"]
        if effect["rule"] == rule and effect["change"] is not None
    }


def efficiency(samples: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Tokens per target forward, and their ratio to lossless speculation's with its interval."""
    sums = samples.pivot_table(
        index="item", columns="system", values=["new_tokens", "blocks"], observed=True
    )
    tokens, blocks = sums["new_tokens"], sums["blocks"]
    base = tokens["speculative"].to_numpy(), blocks["speculative"].to_numpy()
    found = {}
    for system in tokens.columns:
        own = tokens[system].to_numpy(), blocks[system].to_numpy()
        if not own[1].sum():
            continue

        def relative(weights, own=own):
            lossless = (weights @ base[0]) / (weights @ base[1])
            return (weights @ own[0]) / (weights @ own[1]) / lossless

        ratio = bootstrap(relative, len(own[0]), resamples=1000)
        found[str(system)] = {
            "tokens_per_forward": own[0].sum() / own[1].sum(),
            "of_lossless": ratio.value,
            "of_lossless_low": ratio.low,
            "of_lossless_high": ratio.high,
        }
    return found


def shown(table: pd.DataFrame) -> str:
    """The summary as text."""
    lines = [
        f"{'system':32} {'accuracy [95 %]':20} {'minus target [95 %]':24} {'foretold':>8} "
        f"{'p (Holm)':>8} {'narrower':>8} {'tok/fwd':>8}  of lossless [95 %]"
    ]
    for row in table.to_dict("records"):
        known = {name for name, value in row.items() if value == value}
        line = f"{row['system']:32} " + _interval(row, "accuracy", "accuracy_", ".1f", 20)
        line += _interval(row, "minus_target", "", "+.2f", 25) if "low" in known else " " * 25
        if "low" in known:
            p = "< 1e-4" if row["p_holm"] < 1e-4 else f"{row['p_holm']:.4f}"
            told = f"{row['foretold']:+.2f}" if "foretold" in known else ""
            line += f"{told:>8} {p:>8} {row['narrower']:7.1f}x"
        else:
            line += " " * 26
        if "of_lossless" in known:
            line += f" {row['tokens_per_forward']:8.3f}  "
            line += _interval(row, "of_lossless", "of_lossless_", ".3f", 0)
        lines.append(line)
    return "\n".join(lines)


def _interval(row: dict, name: str, prefix: str, form: str, width: int) -> str:
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return f"{row[name]:{form}} [{low:{form}}, {high:{form}}]".ljust(width) + " "


if __name__ == "__main__":
    main()
