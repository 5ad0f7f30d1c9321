"""Every system beside the baseline, sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from easd.report.metrics.frames import POOLED, Frames, cells
from easd.report.metrics.intervals import columns_of
from easd.stats import Comparison, compare_all

BETTER, WORSE, EQUIVALENT = "better", "worse", "equivalent"
SAME, UNKNOWN = "same texts", "cannot tell"

_KEY = ["task", "problem", "seed"]


def differences(
    frames: Frames, baseline: str | None = None, *, margin: float = 0.01
) -> pd.DataFrame:
    """Paired differences to the baseline on the samples that all systems have.

    Holm's adjustment is over all rows together, the pooled ones included.

    Columns: task, system, baseline, pairs, problems, accuracy, baseline_accuracy, difference with
    its interval, p_value, p_holm, gained, lost, unpaired_low, unpaired_high, narrowing,
    p_equivalent, detectable, same_text, finding (better, worse, equivalent, same texts, cannot
    tell), verdict.
    """
    baseline = baseline or frames.baseline
    common = frames.common
    with_baseline = common.loc[common["system"] == baseline, "task"].unique()
    common = common[common["task"].isin(with_baseline)]
    if common["system"].nunique() < 2:
        return pd.DataFrame()
    table = common[["task", "system", "seed", "correct"]].assign(item=common["problem"])
    table = table.astype({"task": str, "system": str})
    if len(with_baseline) > 1:
        everywhere = table.groupby("system")["task"].transform("nunique") == len(with_baseline)
        table = pd.concat([table, table[everywhere].assign(task=POOLED)])
    same = same_text(frames, baseline)
    rows = []
    for found in compare_all(table, baseline, margin=margin):
        rows.append(_row(found, same.get((found.task, found.system), np.nan)))
    order = {name: place for place, name in enumerate([*frames.tasks, POOLED])}
    return pd.DataFrame(rows).sort_values(
        ["task", "system"],
        key=lambda column: column.map(
            order if column.name == "task" else {s: i for i, s in enumerate(frames.systems)}
        ),
        ignore_index=True,
    )


def same_text(frames: Frames, baseline: str) -> dict[tuple[str, str], float]:
    """Share of paired samples whose tokens are exactly the baseline's, by task and system.

    Servers do not tell tokens; of theirs the texts are compared.
    """
    pairs = paired_rows(frames, baseline)
    ours, theirs = pairs["row"].to_numpy(), pairs["baseline_row"].to_numpy()
    if frames.is_remote:
        texts = frames.texts["text"].to_numpy()
        pairs["same"] = texts[ours] == texts[theirs]
    else:
        pairs["same"] = equal_lists(frames.texts["token_ids"], ours, theirs)
    return {(task, system): float(cell["same"].mean()) for task, system, cell in cells(pairs)}


def paired_rows(frames: Frames, baseline: str) -> pd.DataFrame:
    """Each sample beside the baseline's of the same item and seed.

    Columns: those of the samples, row (its place in `frames.texts`), baseline_row,
    baseline_correct.
    """
    common = frames.common.reset_index(names="row")
    first = common.loc[common["system"] == baseline, [*_KEY, "row", "correct"]]
    first = first.rename(columns={"row": "baseline_row", "correct": "baseline_correct"})
    return common[common["system"] != baseline].merge(first, on=_KEY)


def equal_lists(lists: pa.ChunkedArray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether the list at each of `rows` equals the one at the same place of `others`."""
    array = lists.combine_chunks()
    values = array.values.to_numpy()
    offsets = array.offsets.to_numpy().astype(np.int64)
    size = np.diff(offsets)
    same = size[rows] == size[others]
    asked = np.flatnonzero(same & (size[rows] > 0))
    length = size[rows[asked]]
    if not len(asked):
        return same
    ends = length.cumsum()
    within = np.arange(ends[-1]) - np.repeat(ends - length, length)
    left = np.repeat(offsets[rows[asked]], length) + within
    right = np.repeat(offsets[others[asked]], length) + within
    same[asked] = np.logical_and.reduceat(values[left] == values[right], ends - length)
    return same


def _row(found: Comparison, same: float) -> dict[str, Any]:
    error = 1 - found.difference.level
    finding = UNKNOWN
    if same == 1:
        finding = SAME
    elif found.p_real < error:
        finding = BETTER if found.difference.value > 0 else WORSE
    elif found.p_equivalent < error:
        finding = EQUIVALENT
    return {
        "task": found.task,
        "system": found.system,
        "baseline": found.baseline,
        "pairs": found.difference.n,
        "problems": found.difference.n_clusters,
        "accuracy": found.accuracy.value,
        "baseline_accuracy": found.baseline_accuracy.value,
        **columns_of("difference", found.difference),
        "p_value": found.difference.p_value,
        "p_holm": found.p_real,
        "gained": found.difference.gained,
        "lost": found.difference.lost,
        "unpaired_low": found.difference.unpaired_low,
        "unpaired_high": found.difference.unpaired_high,
        "narrowing": found.difference.narrowing,
        "p_equivalent": found.p_equivalent,
        "detectable": np.nan if found.detectable is None else found.detectable,
        "same_text": same,
        "finding": finding,
        "verdict": found.verdict(),
    }
