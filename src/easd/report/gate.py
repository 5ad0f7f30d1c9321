"""Sections on gates: how often they open, what they refuse, and what that costs or gains."""

from __future__ import annotations

import pandas as pd

from easd.diagnose.calibration import NO_OP_RATE
from easd.report import figures as plots
from easd.report.metrics import POOLED, Frames
from easd.report.metrics.frames import Tables, records
from easd.report.metrics.traces import quoted
from easd.report.page import (
    Figure,
    Section,
    make_table,
    number,
    overall,
    p_words,
    rate,
    tables_by_task,
    with_interval,
)
from easd.report.scatter import scatter

_RATES = (
    "system examined gate_rate penalty_rate draft_entropy_rate target_entropy_rate overlap_rate "
    "no_op"
)
_CONDITIONS = {
    "draft_entropy_rate": "the draft-entropy condition",
    "target_entropy_rate": "the target-entropy condition",
    "overlap_rate": "the overlap condition",
}
_REFUSED = "refused count share examined refusal_rate target_prob instead"
_PENALISED = "system penalties samples accuracy baseline_accuracy difference p_value"
_TRADE_OFFS = (
    (
        "penalty",
        "penalty_rate",
        "penalty rate, % of examined positions",
        100,
        "Accuracy against penalty rate of the systems with a gate, with 95 % intervals. Numbers "
        "name the systems of the key.",
    ),
    (
        "efficiency",
        "block_efficiency",
        "tokens per target forward",
        1,
        "Accuracy against block efficiency, with 95 % intervals: up and to the right is better in "
        "both.",
    ),
)
_TOP = 20
_MOST_LINES = 2


def firing_rates(frames: Frames, tables: Tables) -> Section:
    """How often gates open."""
    table = tables["firing"]
    if table.empty:
        sentence = "No system of this run has a gate."
        return Section(name="firing", title="Firing rates", sentences=(sentence,))
    sentences, warnings = [], []
    for row in records(overall(table[table["system"] == frames.focus])):
        sentence = (
            f"The gate of {row['system']} opens at {with_interval(row, 'gate_rate', 'percent')} of "
            f"examined positions, and {with_interval(row, 'penalty_rate', 'percent')} are penalised"
        )
        rates = [(row[name], words) for name, words in _CONDITIONS.items()]
        known = [(rate, words) for rate, words in rates if rate == rate]
        if known:
            rarest = min(known)
            sentence += f"; the rarest of its conditions is {rarest[1]}, met at {rate(rarest[0])}"
        sentences.append(sentence + ".")
        if row["penalty_rate"] < row["gate_rate"]:
            sentences.append(
                "The two differ because an open gate counts at every examined position, and a "
                "penalty only where the gate refused the token: a token that lossless speculation "
                "would have refused anyway counts as rejected."
            )
    idle = table.loc[table["no_op"] & (table["task"] != POOLED)]
    for task, rows in idle.groupby("task", sort=False):
        warnings.append(
            f"On {task} the gate opens at fewer than {100 * NO_OP_RATE:g} % of positions for "
            f"{', '.join(rows['system'])}, which has almost no effect, whatever the accuracy."
        )
    shown = overall(table)
    return Section(
        name="firing",
        title="Firing rates",
        sentences=tuple(sentences),
        warnings=tuple(warnings),
        figures=(
            Figure(
                name="firing",
                svg=plots.intervals(shown, "gate_rate", label="gate open, % of examined positions"),
                caption="How often each gate opens, with 95 % intervals over problems.",
            ),
        ),
        tables=tables_by_task(table, _RATES),
    )


def trade(frames: Frames, tables: Tables) -> Section:
    """Accuracy against penalties, and against tokens per forward."""
    table = tables["tradeoffs"]
    shown = overall(table)
    figures = [
        Figure(
            name=f"accuracy-{name}",
            svg=scatter(
                shown, column, "accuracy", labels=(label, "accuracy, %"), scales=(scale, 100)
            ),
            caption=caption,
        )
        for name, column, label, scale, caption in _TRADE_OFFS
        if shown[column].notna().any()
    ]
    return Section(
        name="trade-off",
        title="Accuracy against penalties and tokens per forward",
        sentences=(_trade_sentence(frames, shown),),
        figures=tuple(figures),
        tables=tables_by_task(table, "system accuracy penalty_rate block_efficiency"),
    )


def over_the_grid(tables: Tables) -> list[str]:
    """Sentences about each grid of thresholds as a whole; none without a grid."""
    table = tables.get("sensitivity", pd.DataFrame())
    if table.empty:
        return []
    found = []
    findings = tables["differences"][["task", "system", "finding"]]
    for (grid, task), rows in table.groupby(["grid", "task"], sort=False):
        name = f"{str(grid).partition(':')[0]}'s grid on {task}"
        cells, shut = len(rows), int((rows["gate_rate"] == 0).sum())
        if shut:
            found.append(
                f"{name}: the gate never opens in {shut} of {cells} cells, so their accuracy is "
                "that of no gate; lower tau_h (easd calibrate finds one for the rate you ask for)."
            )
        if shut == cells:
            continue
        judged = rows.merge(findings, on=["task", "system"])
        judged = judged[judged["gate_rate"] > 0]
        counts = judged["finding"].value_counts()
        listed = ", ".join(f"{count} {finding}" for finding, count in counts.items())
        found.append(f"{name}, cells whose gate opens ({cells - shut}): {listed}.")
    return found


def thresholds(frames: Frames, tables: Tables) -> Section | None:
    """How accuracy and firing depend on both thresholds; None without a grid."""
    table = tables["sensitivity"]
    if table.empty:
        return None
    figures, sentences = [], []
    for (grid, task), rows in table.groupby(["grid", "task"], sort=False):
        ranked = rows.sort_values("accuracy")
        worst, best = ranked.iloc[0], ranked.iloc[-1]
        rule = str(grid).partition(":")[0]
        half = float((rows["accuracy_high"] - rows["accuracy_low"]).median() / 2)
        if worst["accuracy"] == best["accuracy"]:
            sentences.append(
                f"{rule} on {task}: accuracy is {number(best['accuracy'], 'percent')} % in all "
                f"{len(rows)} cells."
            )
        else:
            sentences.append(
                f"{rule} on {task}: accuracy goes from {number(worst['accuracy'], 'percent')} % at "
                f"tau_h {worst['tau_h']:g}, tau_o {worst['tau_o']:g} to "
                f"{number(best['accuracy'], 'percent')} % at tau_h {best['tau_h']:g}, tau_o "
                f"{best['tau_o']:g}; each single value has an interval of about "
                f"±{number(half, 'size')} points."
            )
        figures.append(
            Figure(
                name=f"thresholds-{len(figures) + 1}",
                svg=plots.heat_maps(
                    rows, {"accuracy": "accuracy, %", "gate_rate": "gate open, % of examined"}
                ),
                caption=f"{rule} on {task} over its thresholds. A dash: not decoded. Never: the "
                "gate does not open.",
            )
        )
    columns = "task tau_h tau_o accuracy gate_rate penalty_rate"
    return Section(
        name="thresholds",
        title="Sensitivity to the thresholds",
        sentences=(*over_the_grid(tables), *sentences),
        figures=tuple(figures),
        tables=(make_table(table, columns, "Thresholds", is_open=False),),
    )


def refusals(frames: Frames, tables: Tables) -> Section:
    """Which tokens are refused, what replaces them, and the effect on accuracy."""
    table, split = tables["refused_tokens"], tables["penalised_samples"]
    title = "Refused tokens"
    sentences, found = [], []
    system = frames.focus
    mine = table[table["system"] == system] if len(table) else table
    if mine.empty:
        sentences.append("No token was penalised in the traced items of the system shown.")
    else:
        first = mine.iloc[0]
        sentences.append(
            f"In traced items {system} refused {int(mine['count'].sum()):,} tokens, most often "
            f"{quoted(first['refused'])} ({int(first['count'])} times, instead "
            f"{first['instead']})."
        )
        shown = mine.head(_TOP).assign(refused=mine["refused"].map(quoted))
        found.append(make_table(shown, _REFUSED, f"{system}: tokens refused most"))
    gains = split
    if len(split):
        gains = split[(split["system"] == system) & (split["penalties"] == "some")]
    for row in records(overall(gains)) if len(gains) else ():
        clear = row.get("p_value", 1.0) < 0.05
        sentences.append(
            f"Texts of {system} on {row['task']} with a penalised token ({row['samples']:,}) are "
            f"right in {number(row['accuracy'], 'percent')} %, the baseline on the same in "
            f"{number(row['baseline_accuracy'], 'percent')} %: penalties "
            + (
                f"{'gain' if row['difference'] > 0 else 'cost'} "
                f"{number(abs(row['difference']), 'points').lstrip('+')} points there "
                f"({p_words(row['p_value'])}, one test, unadjusted)."
                if clear
                else "make no difference detected there."
            )
        )
    if len(split):
        found += tables_by_task(split, _PENALISED)
    return Section(name="refused", title=title, sentences=tuple(sentences), tables=tuple(found))


def _trade_sentence(frames: Frames, shown: pd.DataFrame) -> str:
    gated = shown.dropna(subset=["penalty_rate"])
    fast = shown.dropna(subset=["block_efficiency"])
    base = shown[shown["system"] == frames.baseline]
    if fast.empty or base.empty:
        return "Accuracy and speed cannot be compared without a baseline."
    better = fast[(fast["accuracy"] > base["accuracy"].iloc[0]) & (fast["block_efficiency"] > 1.0)]
    sentence = (
        f"{len(better)} of {len(fast)} systems lie above {frames.baseline}'s accuracy with more "
        "than one token per target forward; the verdict above says which differences are real."
    )
    if len(gated) > _MOST_LINES and gated["penalty_rate"].nunique() > _MOST_LINES:
        rank = gated["penalty_rate"].rank().corr(gated["accuracy"].rank())
        sentence += (
            f" Over the {len(gated)} systems with a gate, the rank correlation of accuracy with "
            f"penalty rate is {number(rank, 'number')}; they differ in more than that rate."
        )
    return sentence
