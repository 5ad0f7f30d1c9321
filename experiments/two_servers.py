"""`easd reproduce table1` on two servers: all tasks together, and one server minus the other.

    python experiments/two_servers.py runs/easd runs/vllm

Each folder has one run, or one for each task. Intervals are 95 %, and p is Holm-adjusted over what
is compared with one baseline.
"""

import argparse
from pathlib import Path

import pandas as pd

from easd.runs import open_run
from easd.stats import compare_all

COLUMNS = ["task", "item", "seed", "system", "correct", "finish_reason", "examined", "penalised"]


def read(folder):
    """The samples of every run in a folder, whose items are told apart by their task, too."""
    runs = [open_run(path.parent) for path in sorted(folder.rglob("run.json"))]
    samples = pd.concat(run.samples.select(COLUMNS).to_pandas() for run in runs)
    names = samples[["task", "item", "system"]].astype(str)
    samples["system"], samples["item"] = names["system"], names["task"] + ":" + names["item"]
    return samples


def compared(samples, baseline):
    """One line for each system beside the baseline, over all tasks together."""
    for found in compare_all(samples.drop(columns="task"), baseline):
        value, low, high = (
            f"{100 * x:+.2f}"
            for x in (found.difference.value, found.difference.low, found.difference.high)
        )
        least = "none" if found.detectable is None else f"{100 * found.detectable:.1f}"
        print(
            f"{found.system} minus {baseline}: {value} [{low}, {high}] points, "
            f"p {found.p_real:.2g}; detectable {least}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs=2, type=Path)
    folders = parser.parse_args().folders
    servers = [read(folder) for folder in folders]
    for folder, samples in zip(folders, servers, strict=True):
        print(f"{folder}: right of {len(samples) // samples['system'].nunique():,}")
        right = pd.crosstab(
            *(samples["task"].astype(str), samples["system"]),
            values=samples["correct"].astype(int),
            aggfunc="sum",
            margins=True,
        )
        print(right.drop(columns="All").to_string())
        compared(samples, "target")
        cut = (samples["finish_reason"] == "length").mean()
        print(f"{cut:.0%} of the texts end at the limit of tokens")
        for system, (penalised, examined) in (
            samples.groupby("system")[["penalised", "examined"]].sum().iterrows()
        ):
            if penalised:
                print(f"{system}: {penalised / examined:.2%} of examined tokens penalised")
    for system in servers[0]["system"].unique():
        both = [
            samples[samples["system"] == system].assign(system=f"{system} of {folder}")
            for samples, folder in zip(servers, folders, strict=True)
        ]
        compared(pd.concat(both), f"{system} of {folders[1]}")


if __name__ == "__main__":
    main()
