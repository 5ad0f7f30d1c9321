"""Accuracy, paired differences to the baseline, and texts that differ in correctness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from easd.report.metrics.frames import (
    POOLED,
    Frames,
    by_task_and_system,
    columns_of,
    ordered,
    records,
    share_of,
)
from easd.stats import Comparison, compare_all


def accuracy(frames: Frames) -> pd.DataFrame:
    """Accuracy of every system on every task, and pooled.

    Columns: task, system, samples, problems, accuracy with its interval, failed, cut_off,
    new_tokens (mean length of a text).
    """
    return pd.DataFrame(
        {
            "task": task,
            "system": system,
            "samples": int(group["samples"].sum()),
            "problems": len(group),
            **share_of("accuracy", group["correct"], group["samples"]),
            "failed": int(group["failed"].sum()),
            "cut_off": group["cut_off"].sum() / group["samples"].sum(),
            "new_tokens": group["new_tokens"].sum() / group["samples"].sum(),
        }
        for task, system, group in by_task_and_system(frames.by_problem)
    )


def coverage(frames: Frames) -> pd.DataFrame:
    """Samples asked for, present and compared, for every system and task.

    Columns: task, system, wanted, samples, missing, failed, paired (samples that differences are
    computed on; 0 for a system left out of them).
    """
    seeds = len(frames.run.get("config", {}).get("seeds") or [0])
    keys = ["task", "system"]
    samples = frames.samples.groupby(keys, observed=False)
    paired = frames.common.groupby(keys, observed=False).size()
    found = samples["failed"].agg(["size", "sum"]).reset_index()
    found = found.rename(columns={"size": "samples", "sum": "failed"})
    found["wanted"] = [seeds * frames.run["tasks"][task]["items"] for task in found["task"]]
    found["missing"] = found["wanted"] - found["samples"]
    found["failed"] = found["failed"].astype(int)
    found["paired"] = paired.to_numpy()
    return found[[*keys, "wanted", "samples", "missing", "failed", "paired"]]


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
    return compared(common, baseline, frames, same_text(frames, baseline), margin=margin)


def compared(
    samples: pd.DataFrame,
    baseline: str,
    frames: Frames,
    same: Mapping[tuple[str, str], float],
    *,
    margin: float,
) -> pd.DataFrame:
    """The rows of `differences`.

    Args:
        samples: task, system, problem, seed and correct, of samples that all systems have.
        baseline: the system to compare with.
        frames: gives the order of rows.
        same: share of texts that are the same as the baseline's, by task and system.
        margin: the largest negligible difference, as a fraction.
    """
    table = samples[["task", "system", "seed", "correct"]].assign(item=samples["problem"])
    table = table.astype({"task": str, "system": str})
    tasks = table["task"].nunique()
    if tasks > 1:
        everywhere = table.groupby("system")["task"].transform("nunique") == tasks
        table = pd.concat([table, table[everywhere].assign(task=POOLED)])
    found = pd.DataFrame(
        _row(each, same.get((each.task, each.system), np.nan))
        for each in compare_all(table, baseline, margin=margin)
    )
    order = {"task": [*frames.tasks, POOLED], "system": frames.systems}
    return found.sort_values(
        [*order], key=lambda column: ordered(column, order[str(column.name)]), ignore_index=True
    )


def same_text(frames: Frames, baseline: str) -> dict[tuple[str, str], float]:
    """Share of paired samples whose tokens are exactly the baseline's, by task and system.

    Servers return no token ids; their texts are compared instead.
    """
    pairs = paired_rows(frames, baseline)
    ours, theirs = pairs["row"].to_numpy(), pairs["baseline_row"].to_numpy()
    if frames.is_remote:
        texts = frames.texts["text"].to_numpy()
        pairs["same"] = texts[ours] == texts[theirs]
    else:
        pairs["same"] = equal_lists(frames.texts["token_ids"], ours, theirs)
    return {
        (task, system): float(group["same"].mean())
        for task, system, group in by_task_and_system(pairs)
    }


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
    values, offsets = array.values.to_numpy(), array.offsets.to_numpy()

    def content(row: int) -> bytes:
        return values[offsets[row] : offsets[row + 1]].tobytes()

    pairs = zip(rows, others, strict=True)
    return np.array([content(row) == content(other) for row, other in pairs], dtype=bool)


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


LOST, GAINED = "lost", "gained"


def flips(frames: Frames, system: str | None = None, *, limit: int = 5) -> pd.DataFrame:
    """The first `limit` flips each way on every task, in the task's order, one per item.

    Columns: task, system, item, seed, direction (lost: the baseline is right and the system wrong;
    gained: the reverse), prompt, answers (gold), baseline_answer, answer, shared (text before the
    first different token), baseline_token, token, baseline_rest, rest, place (index of that token;
    none for texts of servers, which are split at the first different character).
    """
    system = system or frames.focus
    pairs = paired_rows(frames, frames.baseline)
    pairs = pairs[pairs["system"] == system]
    vocabulary = _vocabulary(frames.tokens)
    rows = []
    for direction, flipped in (
        (LOST, pairs[pairs["baseline_correct"] & ~pairs["correct"]]),
        (GAINED, pairs[~pairs["baseline_correct"] & pairs["correct"]]),
    ):
        flipped = flipped.sort_values(["task", "index", "seed"]).drop_duplicates("problem")
        for row in records(flipped.groupby("task", observed=True).head(limit)):
            found = {**_named(frames, row), "direction": direction}
            rows.append({**found, **_split_row(frames, row, vocabulary)})
    return pd.DataFrame(rows)


def split(
    first: list[int], second: list[int], texts: tuple[str, str], vocabulary: dict[int, str]
) -> tuple[int, str, list[tuple[str, str]]]:
    """Splits two texts at their first different token.

    If the text of any token is unknown, they are split at the first different character.

    Returns:
        The token's index, the shared text, and of each text the token ("" if unknown) and the rest.
    """
    place = _common_length(first, second)
    if not all(token in vocabulary for token in (*first, *second)):
        return place, *_split_characters(texts)

    def text(ids: Sequence[int]) -> str:
        return "".join(vocabulary[token] for token in ids)

    ends = [(text(ids[place : place + 1]), text(ids[place + 1 :])) for ids in (first, second)]
    return place, text(first[:place]), ends


def _split_characters(texts: tuple[str, str]) -> tuple[str, list[tuple[str, str]]]:
    place = _common_length(*texts)
    return texts[0][:place], [("", text[place:]) for text in texts]


def _common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _split_row(frames: Frames, row: dict[str, Any], vocabulary: dict[int, str]) -> dict[str, Any]:
    theirs, ours = frames.texts.take([row["baseline_row"], row["row"]]).to_pylist()
    texts = (theirs["text"], ours["text"])
    if theirs["token_ids"] is None or ours["token_ids"] is None:
        place, shared, ends = None, *_split_characters(texts)
    else:
        place, shared, ends = split(theirs["token_ids"], ours["token_ids"], texts, vocabulary)
    return {
        "baseline_answer": theirs["answer"],
        "answer": ours["answer"],
        "place": place,
        "shared": shared,
        "baseline_token": ends[0][0],
        "token": ends[1][0],
        "baseline_rest": ends[0][1],
        "rest": ends[1][1],
    }


def _named(frames: Frames, row: dict[str, Any]) -> dict[str, Any]:
    items = frames.items
    asked = items[(items["task"] == row["task"]) & (items["item"] == row["item"])]
    item = asked.iloc[0] if len(asked) else {"prompt": "", "answers": []}
    return {
        **{name: row[name] for name in ("task", "system", "item", "seed")},
        "prompt": item["prompt"],
        "answers": list(item["answers"] if item["answers"] is not None else []),
    }


def _vocabulary(tokens: pa.Table) -> dict[int, str]:
    """Texts of all tokens of traced items."""
    texts = tokens.select(["token", "text"]).group_by("token").aggregate([("text", "min")])
    texts = texts.filter(pc.field("text_min").is_valid())
    return dict(zip(texts["token"].to_pylist(), texts["text_min"].to_pylist(), strict=True))
