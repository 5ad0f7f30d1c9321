"""`easd reproduce table1` on two servers: all tasks together, and one server minus the other.

    python experiments/two_servers.py runs/easd runs/vllm

Each folder has one run, or one for each task. Only problems that all systems of both servers have
answered are counted. Intervals are 95 %; p is of McNemar's exact test, for the differences of one
server from its target Holm-adjusted.
"""

import argparse
from pathlib import Path

import pandas as pd

from easd.runs import open_run
from easd.stats import Spread, holm, paired_difference

KEYS = ["task", "item", "seed"]
COLUMNS = [*KEYS, "system", "correct", "finish_reason", "examined", "penalised"]


def read(folder):
    """The samples of every run in a folder."""
    runs = [open_run(path.parent) for path in sorted(folder.rglob("run.json"))]
    return pd.concat(run.samples.select(COLUMNS).to_pandas() for run in runs)


def grades(samples):
    """1 where a system is right: one row per problem, one column per system."""
    right = samples.assign(system=samples["system"].astype(str), correct=samples["correct"] * 1.0)
    return right.pivot(index=KEYS, columns="system", values="correct").dropna()


def shown(difference, p_value):
    value, low, high = (
        f"{100 * x:+.2f}" for x in (difference.value, difference.low, difference.high)
    )
    return f"{value} [{low}, {high}] points, p {p_value:.2g}"


def detectable(one, other):
    """The smallest difference found with 80 % power, in points."""
    found = Spread.of_pilot(one, other).detectable(len(one))
    return "none" if found is None else f"{100 * found:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs=2, type=Path)
    folders = parser.parse_args().folders
    samples = [read(folder) for folder in folders]
    one, other = map(grades, samples)
    both = one.index.intersection(other.index)
    one, other = one.loc[both], other.loc[both]
    names = [name for name in ("target", "draft", "speculative", "easd") if name in one]
    for folder, server, rows in zip(folders, (one, other), samples, strict=True):
        print(f"{folder}: right of {len(server):,}")
        print(server[names].sum().astype(int).to_string())
        print(server[names].groupby("task", observed=True).sum().astype(int).to_string())
        found = {n: paired_difference(server[n], server["target"]) for n in names if n != "target"}
        adjusted = holm([difference.p_value for difference in found.values()])
        for (name, difference), p_value in zip(found.items(), adjusted, strict=True):
            least = detectable(server[name], server["target"])
            print(f"{name} minus target: {shown(difference, p_value)}; detectable {least}")
        cut = (rows["finish_reason"] == "length").mean()
        print(f"{cut:.0%} of the texts end at the limit of tokens")
        counts = rows.groupby("system", observed=True)[["penalised", "examined"]].sum()
        for name, (penalised, examined) in counts.iterrows():
            if penalised:
                print(f"{name}: {penalised / examined:.2%} of examined tokens penalised")
    print(f"{folders[0]} minus {folders[1]}")
    for name in names:
        difference = paired_difference(one[name], other[name])
        least = detectable(one[name], other[name])
        print(f"{name}: {shown(difference, difference.p_value)}; detectable {least}")


if __name__ == "__main__":
    main()
