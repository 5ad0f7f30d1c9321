"""Sections on what gates do: how often, where, to which tokens, and what that goes with."""

from __future__ import annotations

import pandas as pd

from easd.diagnose.calibration import NO_OP_RATE
from easd.report import figures as plots
from easd.report.cells import number, p_words
from easd.report.metrics import POOLED, Frames
from easd.report.metrics.emitted import quoted
from easd.report.metrics.frames import records
from easd.report.page import Figure, Section, make_table, tables_by_task

_RATES = (
    "system",
    "examined",
    "gate_rate",
    "penalty_rate",
    "draft_entropy_rate",
    "target_entropy_rate",
    "overlap_rate",
    "no_op",
)
_CONDITIONS = {
    "draft_entropy_rate": "the draft-entropy condition",
    "target_entropy_rate": "the target-entropy condition",
    "overlap_rate": "the overlap condition",
}
_MET = ("draft_entropy_met", "target_entropy_met", "overlap_met")
_REFUSED = (
    "refused",
    "count",
    "share",
    "examined",
    "refusal_rate",
    "target_prob",
    "instead",
)
_PENALISED = (
    "system",
    "penalties",
    "samples",
    "accuracy",
    "baseline_accuracy",
    "difference",
    "p_value",
)
_NO_GATE = "No system of this run has a gate."
_NO_TRACE = "No item was traced, so nothing is known token by token."
_TOP = 20
_MOST_LINES = 2


def firing_rates(frames: Frames, table: pd.DataFrame) -> Section:
    """How often gates open."""
    if table.empty:
        return Section(name="firing", title="Firing rates", sentences=(_NO_GATE,))
    sentences, warnings = [], []
    for row in records(_overall(table[table["system"] == frames.focus])):
        sentence = (
            f"The gate of {row['system']} opens at {_percent(row, 'gate_rate')} of examined "
            f"positions, and {_percent(row, 'penalty_rate')} are penalised"
        )
        rates = [(row[name], words) for name, words in _CONDITIONS.items()]
        known = [(rate, words) for rate, words in rates if rate == rate]
        if known:
            rarest = min(known)
            sentence += f"; the rarest of its conditions is {rarest[1]}, met at {_rate(rarest[0])}"
        sentences.append(sentence + ".")
    idle = table.loc[table["no_op"] & (table["task"] != POOLED)]
    for task, rows in idle.groupby("task", sort=False):
        warnings.append(
            f"On {task} the gate opens at fewer than {100 * NO_OP_RATE:g} % of positions for "
            f"{', '.join(rows['system'])}: as good as a no-op, whatever its accuracy."
        )
    shown = _overall(table)
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


def entropies(
    frames: Frames,
    histogram: pd.DataFrame,
    summary: pd.DataFrame,
    overlaps: pd.DataFrame,
    joint: pd.DataFrame,
) -> Section:
    """Where the models are unsure, and how much their favourites overlap."""
    title = "Entropies and overlap"
    if histogram.empty:
        return Section(name="entropies", title=title, sentences=(_NO_TRACE,))
    system = _close_up(frames, histogram)
    sentences = []
    for row in records(summary[summary["system"] == system]):
        above = row["above_tau_h"]
        tail = f", above tau_h at {_rate(above)} of positions" if above == above else ""
        sentences.append(
            f"{system}: the {row['model']}'s entropy has median {number(row['p50'], 'nats')} and "
            f"95 % quantile {number(row['p95'], 'nats')} nats{tail}."
        )
    together = joint[joint["system"] == system] if len(joint) else joint
    if len(together):
        whole = together[list(_MET)].all(axis=1)
        sentences.append(
            "All three conditions hold together at "
            f"{_rate(together.loc[whole, 'share'].sum())} of its examined positions."
        )
    own = frames.rule(system).get("tau_h")
    figures = [
        Figure(
            name="entropies",
            svg=plots.histograms(
                histogram[histogram["system"] == system],
                [] if own is None else [float(own)],
            ),
            caption=f"Entropies of draft and target at the positions that {system} emitted, in "
            "traced items, over the full vocabulary"
            f"{'' if own is None else '; the dotted line is the threshold of its gate'}.",
        )
    ]
    shared = overlaps[overlaps["system"] == system]
    if len(shared):
        figures.append(
            Figure(
                name="overlap",
                svg=plots.bars(
                    shared,
                    "overlap",
                    "share",
                    labels=("overlap of the most probable tokens", "examined positions, %"),
                ),
                caption=f"Share of the most probable tokens that draft and target have in common, "
                f"at positions that {system} examined.",
            )
        )
    return Section(
        name="entropies",
        title=title,
        sentences=tuple(sentences),
        figures=tuple(figures),
        tables=(
            make_table(
                together,
                (*_MET, "positions", "share"),
                f"{system}: which conditions hold together",
            ),
            make_table(
                summary,
                ("system", "model", "positions", "mean", "p50", "p90", "p95", "p99", "above_tau_h"),
                "Entropies of all systems",
                is_open=False,
            ),
        ),
    )


def trade(frames: Frames, table: pd.DataFrame) -> Section:
    """Accuracy against penalties, and against tokens per forward."""
    shown = _overall(table)
    figures = []
    if shown["penalty_rate"].notna().any():
        figures.append(
            Figure(
                name="accuracy-penalty",
                svg=plots.scatter(
                    shown,
                    "penalty_rate",
                    "accuracy",
                    labels=("penalty rate, % of examined positions", "accuracy, %"),
                    scales=(100, 100),
                ),
                caption="Accuracy against penalty rate of the systems with a gate, with 95 % "
                "intervals. Numbers name the systems of the key.",
            )
        )
    if shown["block_efficiency"].notna().any():
        figures.append(
            Figure(
                name="accuracy-efficiency",
                svg=plots.scatter(
                    shown,
                    "block_efficiency",
                    "accuracy",
                    labels=("tokens per target forward", "accuracy, %"),
                    scales=(1, 100),
                ),
                caption="Accuracy against block efficiency, with 95 % intervals: up and to the "
                "right is better in both.",
            )
        )
    return Section(
        name="trade-off",
        title="Accuracy against penalties and tokens per forward",
        sentences=(_trade_sentence(frames, shown),),
        figures=tuple(figures),
        tables=tables_by_task(table, ("system", "accuracy", "penalty_rate", "block_efficiency")),
    )


def correctness(frames: Frames, groups: pd.DataFrame, correlations: pd.DataFrame) -> Section:
    """Whether doubtful texts are wrong more often."""
    title = "Entropy and correctness"
    if groups.empty:
        return Section(
            name="correctness",
            title=title,
            sentences=("Too few traced texts to group them by entropy.",),
        )
    shown = [s for s in dict.fromkeys([frames.baseline, frames.focus]) if s is not None]
    sentences = []
    for row in records(correlations[correlations["system"].isin(shown)]):
        low, high = row["correlation_low"], row["correlation_high"]
        sure = low == low and (low > 0 or high < 0)
        meaning = "no clear relation"
        if sure:
            meaning = "doubtful texts are wrong " + ("more" if high < 0 else "less") + " often"
        interval = f" [{number(low, 'number')}, {number(high, 'number')}]" if low == low else ""
        sentences.append(
            f"{row['system']} on {row['task']}: correlation {number(row['correlation'], 'number')}"
            f"{interval} between a text's mean target entropy and its being right; {meaning}."
        )
    return Section(
        name="correctness",
        title=title,
        sentences=tuple(sentences),
        figures=(
            Figure(
                name="correctness",
                svg=plots.lines(
                    groups[groups["system"].isin(shown)],
                    "entropy",
                    "accuracy",
                    labels=("mean target entropy of a text, nats", "accuracy, %"),
                ),
                caption="Accuracy of traced texts in fifths from sure to doubtful, with 95 % "
                "intervals over problems.",
            ),
        ),
        tables=(
            make_table(
                correlations,
                ("task", "system", "samples", "correlation"),
                "Correlations",
                is_open=len(correlations) <= 30,
            ),
            make_table(
                groups,
                ("task", "system", "group", "entropy_low", "entropy_high", "samples", "accuracy"),
                "Accuracy by fifths",
                is_open=False,
            ),
        ),
    )


def refusals(frames: Frames, table: pd.DataFrame, split: pd.DataFrame) -> Section:
    """Which tokens are refused, what replaces them, and whether that goes with gains."""
    title = "Refused tokens"
    sentences = []
    tables = []
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
        tables.append(make_table(shown, _REFUSED, f"{system}: tokens refused most"))
    gains = split
    if len(split):
        gains = split[(split["system"] == system) & (split["penalties"] == "some")]
    for row in records(_overall(gains)) if len(gains) else ():
        clear = row.get("p_value", 1.0) < 0.05
        sentences.append(
            f"Texts of {system} on {row['task']} with a penalised token ({row['samples']:,}) are "
            f"right in {number(row['accuracy'], 'percent')} %, the baseline on the same in "
            f"{number(row['baseline_accuracy'], 'percent')} %: penalties "
            + (
                f"{'gain' if row['difference'] > 0 else 'cost'} "
                f"{number(abs(row['difference']), 'points').lstrip('+')} points where they act "
                f"({p_words(row['p_value'])}, one test, unadjusted)."
                if clear
                else "neither clearly gain nor cost anything where they act."
            )
        )
    if len(split):
        tables += tables_by_task(split, _PENALISED)
    return Section(name="refused", title=title, sentences=tuple(sentences), tables=tuple(tables))


def thresholds(frames: Frames, table: pd.DataFrame) -> Section | None:
    """How accuracy and firing depend on both thresholds; None where no systems form a grid."""
    if table.empty:
        return None
    figures, sentences = [], []
    for (grid, task), rows in table.groupby(["grid", "task"], sort=False):
        ranked = rows.sort_values("accuracy")
        worst, best = ranked.iloc[0], ranked.iloc[-1]
        rule = str(grid).partition(":")[0]
        sentences.append(
            f"{rule} on {task}: accuracy goes from {number(worst['accuracy'], 'percent')} % at "
            f"tau_h {worst['tau_h']:g}, tau_o {worst['tau_o']:g} to "
            f"{number(best['accuracy'], 'percent')} % at tau_h {best['tau_h']:g}, tau_o "
            f"{best['tau_o']:g}; each value alone is known to about "
            f"±{number(_half_width(rows), 'size')} points."
        )
        figures.append(
            Figure(
                name=f"thresholds-{len(figures) + 1}",
                svg=plots.heat_maps(
                    rows, {"accuracy": "accuracy, %", "gate_rate": "gate open, % of examined"}
                ),
                caption=f"{rule} on {task} over its thresholds. A dash: not decoded.",
            )
        )
    columns = ("grid", "task", "tau_h", "tau_o", "accuracy", "gate_rate", "penalty_rate")
    return Section(
        name="thresholds",
        title="Sensitivity to the thresholds",
        sentences=tuple(sentences),
        figures=tuple(figures),
        tables=(make_table(table, columns[1:], "Thresholds", is_open=False),),
    )


def _overall(table: pd.DataFrame) -> pd.DataFrame:
    """The pooled rows, or those of the only task."""
    pooled = table[table["task"] == POOLED]
    return pooled if len(pooled) else table


def _close_up(frames: Frames, histogram: pd.DataFrame) -> str:
    traced = list(histogram["system"].unique())
    return str(frames.focus if frames.focus in traced else traced[0])


def _half_width(rows: pd.DataFrame) -> float:
    return float((rows["accuracy_high"] - rows["accuracy_low"]).median() / 2)


def _trade_sentence(frames: Frames, shown: pd.DataFrame) -> str:
    gated = shown.dropna(subset=["penalty_rate"])
    fast = shown.dropna(subset=["block_efficiency"])
    base = shown[shown["system"] == frames.baseline]
    if fast.empty or base.empty:
        return "There is no baseline to weigh accuracy and speed against."
    better = fast[(fast["accuracy"] > base["accuracy"].iloc[0]) & (fast["block_efficiency"] > 1.0)]
    sentence = (
        f"{len(better)} of {len(fast)} systems lie above {frames.baseline}'s accuracy with more "
        "than one token per target forward; whether such a difference is real is said above."
    )
    if len(gated) > _MOST_LINES and gated["penalty_rate"].nunique() > _MOST_LINES:
        rank = gated["penalty_rate"].rank().corr(gated["accuracy"].rank())
        sentence += (
            f" Over the {len(gated)} systems with a gate, the rank correlation of accuracy with "
            f"penalty rate is {number(rank, 'number')}; they differ in more than that rate."
        )
    return sentence


def _percent(row: dict, name: str) -> str:
    ends = [row[f"{name}_{end}"] for end in ("low", "high")]
    interval = ""
    if ends[0] == ends[0]:
        interval = " [" + ", ".join(number(end, "percent") for end in ends) + "]"
    return f"{number(row[name], 'percent')} %{interval}"


def _rate(share: float) -> str:
    return f"{number(share, 'percent')} %"
