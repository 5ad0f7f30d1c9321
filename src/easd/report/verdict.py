"""Sections on which system is better, by how much, and with what certainty."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from easd.report import figures as plots
from easd.report.best import answers
from easd.report.gate import over_the_grid
from easd.report.metrics import POOLED, Frames
from easd.report.metrics.accuracy import BETTER, EQUIVALENT, SAME, UNKNOWN, WORSE
from easd.report.metrics.frames import Tables, records
from easd.report.page import (
    MINUS,
    Figure,
    Section,
    make_table,
    number,
    p_words,
    tables_by_task,
    with_interval,
)
from easd.runs.fit_overlap import overlaps

_VERDICT = (
    "system finding accuracy difference p_holm same_text gate_rate block_efficiency detectable"
)
_SIGNS = {BETTER: "▲", WORSE: "▼", EQUIVALENT: "=", SAME: "=", UNKNOWN: "?"}
_DIFFERENCES = (
    "system pairs problems difference p_value p_holm p_equivalent gained lost unpaired narrowing "
    "same_text"
)
_ERROR = 0.05
_ONE_BY_ONE = (
    "Each interval is for its comparison alone, Holm's p for all comparisons together: here an "
    "interval excludes zero although the adjusted p is above 0.05."
)
_ALONE = "There is only one system, so there is nothing to compare."
_ACCURACY = "system samples problems accuracy failed cut_off new_tokens"


def verdict(frames: Frames, tables: Tables, margin: float) -> Section:
    """Which differences are significant, which are negligible, and which are undecided."""
    table = tables["differences"]
    sentences = answers(frames, tables)
    shown = []
    if table.empty:
        sentences.append(_ALONE)
    sentences += over_the_grid(tables)
    focus = frames.focus
    for task, rows in _by_task(table, pooled_first=True):
        mine = rows[rows["system"] == focus]
        if len(mine):
            sentences.append(_lead(records(mine)[0], margin, len(table)))
        sentences.append(_others(task, rows[rows["system"] != focus], frames.baseline, margin))
        sentences.append(_scale(frames, rows))
        title = f"{task}: each system against {frames.baseline}"
        shown.append(make_table(_beside_costs(frames, tables, task, rows), _VERDICT, title))
    if len(table):
        excludes_zero = table["difference_low"].gt(0) | table["difference_high"].lt(0)
        if (excludes_zero & table["p_holm"].gt(_ERROR)).any():
            sentences.append(_ONE_BY_ONE)
    return Section(
        name="verdict",
        title="Verdict",
        sentences=tuple(filter(None, sentences)),
        warnings=(
            *_unfinished(frames, tables["coverage"]),
            *(f"{line[0].upper()}{line[1:]}." for line in overlaps(frames.run)),
        ),
        tables=tuple(replace(each, is_open=not at) for at, each in enumerate(shown)),
    )


def _beside_costs(frames: Frames, tables: Tables, task: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The findings on a task, the baseline first, with gate rates and tokens per forward."""
    accuracy = rows["baseline_accuracy"].iloc[0]
    first = {"system": frames.baseline, "finding": "baseline", "accuracy": accuracy}
    signed = rows.assign(finding=rows["finding"].map(_SIGNS) + " " + rows["finding"])
    found = pd.concat([pd.DataFrame([first]), signed], ignore_index=True)
    for name, column in (("firing", "gate_rate"), ("drafting", "block_efficiency")):
        costs = tables.get(name, tables.get("serving", pd.DataFrame()))
        if column in costs:
            own = costs[costs["task"] == task].set_index("system")[column]
            found[column] = found["system"].map(own)
    return found


def accuracies(frames: Frames, tables: Tables) -> Section:
    """The accuracy of each system."""
    table, counts = tables["accuracy"], tables["coverage"]
    sentences = []
    for task, rows in table.groupby("task", sort=False):
        best = rows.nlargest(1, "accuracy").iloc[0]
        base = rows[rows["system"] == frames.baseline]
        own = (
            f"{frames.baseline} is right in {with_interval(base.iloc[0], 'accuracy', 'percent')}; "
            if len(base)
            else ""
        )
        sentences.append(
            f"On {task}, {own}the highest accuracy is that of {best['system']}, "
            f"{with_interval(best, 'accuracy', 'percent')}."
        )
    failed = int(counts["failed"].sum())
    skipped = sum(len(t.get("skipped") or []) for t in frames.run["tasks"].values())
    sentences.append(
        f"{failed:,} texts failed in decoding or grading and were counted as wrong; "
        f"{skipped:,} lines of the data could not be read and were skipped."
    )
    return Section(
        name="accuracy",
        title="Accuracy",
        sentences=tuple(sentences),
        warnings=_cut_off(table),
        figures=(
            Figure(
                name="accuracy",
                svg=plots.intervals(table, "accuracy", label="accuracy, %"),
                caption="Accuracy of every system with 95 % intervals over problems. Each interval "
                "is for its system alone; paired differences are below.",
            ),
        ),
        tables=(
            *tables_by_task(table, _ACCURACY),
            make_table(
                counts,
                "task system wanted samples missing failed paired",
                "Samples asked for, decoded and compared",
                is_open=bool(counts["missing"].sum()),
            ),
        ),
    )


def paired(frames: Frames, tables: Tables) -> Section:
    """Paired differences, and how much pairing narrowed their intervals."""
    table, against = tables["differences"], tables["differences_to_speculative"]
    if table.empty:
        return Section(name="differences", title="Paired differences", sentences=(_ALONE,))
    sizes = table[table["task"] != POOLED].groupby("task", sort=False)["pairs"].first()
    pairs = ", ".join(f"{size:,} samples of {task}" for task, size in sizes.items())
    narrower = table.loc[table["narrowing"] < float("inf"), "narrowing"]
    sentences = [
        f"Differences are computed sample by sample, on {pairs} that all systems have; "
        f"pairing made the intervals {number(narrower.median(), 'factor')} times narrower (median "
        f"over systems; {number(narrower.min(), 'factor')} to {number(narrower.max(), 'factor')}).",
        *_same_texts(frames, table),
    ]
    figures = [
        Figure(
            name="differences",
            svg=plots.intervals(
                table, "difference", label=f"accuracy {MINUS} {frames.baseline}, points", zero=True
            ),
            caption=f"Difference in accuracy to {frames.baseline}, with the paired 95 % interval "
            "(dark) on top of the interval of unpaired samples (light).",
        )
    ]
    shown = [*tables_by_task(table, _DIFFERENCES)]
    if len(against):
        name = str(against["baseline"].iloc[0])
        for task, rows in _by_task(against):
            mine = rows[rows["system"] == frames.focus]
            if len(mine):
                sentences.append(_beside(records(mine)[0]))
            shown.append(make_table(rows, _DIFFERENCES, f"{task}: against {name}", is_open=False))
    for task, rows in _by_task(tables["differences_to_best"]):
        title = f"{task}: against {rows['baseline'].iloc[0]} ({rows['chosen'].iloc[0]})"
        shown.append(make_table(rows, _DIFFERENCES, title, is_open=False))
    return Section(
        name="differences",
        title="Paired differences",
        sentences=tuple(sentences),
        figures=tuple(figures),
        tables=tuple(shown),
    )


def _by_task(table: pd.DataFrame, *, pooled_first: bool = False) -> list[tuple[str, pd.DataFrame]]:
    if table.empty:
        return []
    found = [(str(task), rows) for task, rows in table.groupby("task", sort=False)]
    return sorted(found, key=lambda each: pooled_first and each[0] != POOLED)


def _lead(row: dict[str, Any], margin: float, family: int) -> str:
    size = number(abs(row["difference"]), "points").lstrip("+")
    interval = f"95 % interval {_interval(row)}"
    where = f"on {row['task']} ({row['pairs']:,} pairs)"
    name, baseline = row["system"], row["baseline"]
    p_text = f"{p_words(row['p_holm'])}, Holm-adjusted"
    if row["finding"] == BETTER:
        return f"{name} helps {where}: {size} points above {baseline} ({interval}, {p_text})."
    if row["finding"] == WORSE:
        return f"{name} hurts {where}: {size} points below {baseline} ({interval}, {p_text})."
    if row["finding"] == SAME:
        return f"{name} does nothing {where}: every text is {baseline}'s, token for token."
    if row["finding"] == EQUIVALENT:
        return (
            f"{name} makes no difference beyond ±{_margin(margin)} {where}: "
            f"{number(row['difference'], 'points')} points to {baseline} ({interval})."
        )
    power = (
        f"this run detects differences of {number(row['detectable'], 'size')} points or more with "
        f"80 % power{f', as one of {family} comparisons' if family > 1 else ''}"
        if row["detectable"] == row["detectable"]
        else "this run is too small to detect any difference with 80 % power"
    )
    return (
        f"Whether {name} helps or hurts {where} cannot be told: "
        f"{number(row['difference'], 'points')} points to {baseline} ({interval}, {p_text}); "
        f"{power}."
    )


def _others(task: str, rows: pd.DataFrame, baseline: str, margin: float) -> str:
    """The findings on all other systems, with the largest difference each way."""
    if rows.empty:
        return ""
    clauses = []
    for finding, words in (
        (BETTER, f"significantly better than {baseline}"),
        (WORSE, "significantly worse"),
        (EQUIVALENT, f"within ±{_margin(margin)}"),
        (SAME, "with exactly the baseline's texts"),
        (UNKNOWN, "with no difference detected in this many samples"),
    ):
        found = rows[rows["finding"] == finding]
        if found.empty:
            continue
        largest = found.sort_values("difference", key=abs).iloc[-1]
        named = f" (largest: {largest['system']}, {number(largest['difference'], 'points')})"
        clauses.append(f"{len(found)} {words}{named if finding != SAME else ''}")
    return f"Of the other {len(rows)} systems on {task}: {'; '.join(clauses)}."


def _scale(frames: Frames, rows: pd.DataFrame) -> str:
    """The effect of decoding the target at another temperature, for comparison."""
    found = [
        f"{row['system']} is at {number(row['difference'], 'points')} points ({row['finding']})"
        for row in records(rows)
        if frames.kind(row["system"]) == "target"
    ]
    return f"For scale: {', '.join(found)}." if found else ""


def _beside(row: dict[str, Any]) -> str:
    return (
        f"Against {row['baseline']} on {row['task']}, {row['system']} is at "
        f"{number(row['difference'], 'points')} points (95 % interval {_interval(row)}, "
        f"{p_words(row['p_holm'])}, Holm-adjusted): {row['finding']}."
    )


def _same_texts(frames: Frames, table: pd.DataFrame) -> list[str]:
    found = []
    for task, rows in _by_task(table):
        mine = rows[rows["system"] == frames.focus]
        if len(mine):
            found.append(
                f"On {task}, {number(mine['same_text'].iloc[0], 'percent')} % of "
                f"{frames.focus}'s texts are exactly {frames.baseline}'s."
            )
    return found


def _unfinished(frames: Frames, counts: pd.DataFrame) -> tuple[str, ...]:
    missing, wanted = int(counts["missing"].sum()), int(counts["wanted"].sum())
    left_out = counts[(counts["samples"] > 0) & (counts["paired"] == 0)]
    found = []
    if missing:
        found.append(
            f"The run is not complete ({frames.run.get('status')}): {missing:,} of {wanted:,} "
            "samples are missing. Numbers below are for the decoded ones; differences are computed "
            "on samples that all systems have."
        )
    found += [
        f"{row['system']} on {row['task']} has too few samples to be compared "
        f"({row['samples']:,} of {row['wanted']:,})."
        for row in records(left_out)
    ]
    return tuple(found)


def _cut_off(table: pd.DataFrame) -> tuple[str, ...]:
    own = table[table["task"] != POOLED]
    most = own.nlargest(1, "cut_off").iloc[0]
    if most["cut_off"] < 0.05:
        return ()
    return (
        f"Up to {number(most['cut_off'], 'percent')} % of texts ({most['system']} on "
        f"{most['task']}) were ended by the token limit and may be wrong for that reason alone.",
    )


def _interval(row: dict[str, Any]) -> str:
    low, high = (number(row[f"difference_{end}"], "points") for end in ("low", "high"))
    return f"{low} to {high}"


def _margin(margin: float) -> str:
    points = f"{100 * margin:g}"
    return f"{points} point{'' if points == '1' else 's'}"
