"""Write docs/results.md and its figure from runs: `python docs/make_results.py RUN...`.

A run has targets at two temperatures or more, lossless speculation, EASD, and maybe others, as the
folder `run` of an `easd study` has. The page says how each was made.
"""

import sys
from pathlib import Path

import pandas as pd

from easd.report import figures
from easd.report.metrics import Frames, differences_to_best, drafting, frames
from easd.report.metrics.accuracy import BETTER, WORSE
from easd.report.metrics.frames import POOLED
from easd.report.page import number, p_words
from easd.runs import open_run

PAGE = Path(__file__).with_name("results.md")
FIGURE = PAGE.parent / "images" / "results.svg"

HEAD = """<!-- Written by docs/make_results.py from run folders. -->

# Results

Should I use EASD? Every system is compared with the target *at its best temperature*, which is
chosen for each half of the problems on the other half, on problems that nothing was tuned on.

{answer}

![Accuracy minus that of the target at its best temperature](images/results.svg)

"""

TAIL = """
*Of lossless* is the ratio of tokens a target forward to those of lossless speculation at the
target's best temperature. Above 1 a system is also faster, apart from the time it takes to ask the
draft at the end of a block.

The runs:

```sh
{commands}
python docs/make_results.py runs/results/*/run
```

The pairs are [small](training.md), and what holds for them need not hold for large models.
`easd study` answers the question [for yours](evidence.md); [Measurements](measurements.md) has more
systems.
"""

HEADINGS = {
    "models": "---",
    "problems": "---:",
    "the target at its best, %": "---:",
    "system": "---",
    "difference, points": "---:",
    "Holm p": "---:",
    "tokens a forward": "---:",
    "of lossless": "---:",
}


def compared(run: Frames) -> pd.DataFrame:
    """Differences to the best target on all tasks, with tokens per forward."""
    table = differences_to_best(run)
    if table.empty:
        sys.exit(f"{run.run['models']} has one target only; decode it at two temperatures or more")
    table = table[table["task"] == (POOLED if len(run.tasks) > 1 else run.tasks[0])]
    found = drafting(run)
    efficiency = found[found["task"].isin(table["task"])].set_index("system")["block_efficiency"]
    lossless = efficiency.get(run.first_of("speculative"))
    forward = table["system"].map(efficiency)
    about = {"forward": forward, "of_lossless": forward / lossless}
    kinds = table["system"].map(run.kind)
    named = {"models": run.run["models"]["pair"], "kind": kinds, **about}
    return table.assign(**named)[~kinds.isin(["draft", "target"])]


def answer(table: pd.DataFrame) -> str:
    """The page's first sentences."""
    lines = []
    for title, rows in (
        ("EASD", table[table["kind"] == "easd"]),
        ("The pool of both opinions", table[table["kind"].str.startswith("pool")]),
    ):
        parts = [f"**{title}:**"]
        for verb, finding in (("helps", BETTER), ("hurts", WORSE)):
            own = rows[rows["finding"] == finding]
            if len(own):
                parts.append(f"{verb} on {', '.join(own['models'])}")
        rest = rows[~rows["finding"].isin([BETTER, WORSE])]
        if len(rest):
            parts.append(f"no difference was detected on {', '.join(rest['models'])}")
        lines.append(f"{parts[0]} {'; '.join(parts[1:])}.")
    return " ".join(lines)


def row(each: pd.Series) -> str:
    """A line of the table."""
    value, low, high = (number(each[f"difference{end}"], "points") for end in ("", "_low", "_high"))
    cells = [
        each["models"],
        f"{each['problems']:,}",
        number(each["baseline_accuracy"], "percent"),
        each["system"],
        f"{value} [{low}, {high}]",
        p_words(each["p_holm"]).removeprefix("p ").removeprefix("= "),
        "—" if pd.isna(each["forward"]) else f"{each['forward']:.2f}",
        "—" if pd.isna(each["of_lossless"]) else f"{each['of_lossless']:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def command(run: Frames) -> str:
    """How the run was made."""
    (task,) = run.run["config"]["tasks"]
    pair, end = run.run["models"]["pair"], task["first"] + task["limit"]
    config = run.run["config"]
    more = f"--batch {config['batch_size']} --set chunk={config['chunk']}"
    return f"easd study --pair {pair} {task['name']}:{end} {more} --out runs/results/{pair}"


def page(runs: list[Frames], table: pd.DataFrame) -> str:
    """The page's text, from runs and their differences."""
    lines = [HEADINGS, HEADINGS.values()]
    rows = [f"| {' | '.join(line)} |" for line in lines]
    rows += [row(each) for _, each in table.iterrows()]
    head, tail = HEAD.format(answer=answer(table)), "\n".join(map(command, runs))
    return head + "\n".join(rows) + "\n" + TAIL.format(commands=tail)


def figure(table: pd.DataFrame) -> str:
    """A panel for each pair, with EASD and the pool."""
    names = table["kind"].map(lambda kind: "EASD" if kind == "easd" else "pool of both opinions")
    panels = table.assign(task=table["models"], system=names)
    panels = panels.drop(columns=["unpaired_low", "unpaired_high"])
    label = "points over the target at its best"
    return figures.intervals(panels, "difference", label=label, zero=True)


def main(folders: list[str]) -> None:
    """Writes the page and the figure."""
    runs = [frames(open_run(folder, "evaluation")) for folder in folders]
    table = pd.concat([compared(run) for run in runs], ignore_index=True)
    PAGE.write_text(page(runs, table), encoding="utf-8")
    FIGURE.write_text(figure(table), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
