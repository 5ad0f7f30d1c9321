"""Sections on entropies and overlap at traced positions, and how they relate to correctness."""

from __future__ import annotations

import pandas as pd

from easd.report import figures as plots
from easd.report.metrics import Frames
from easd.report.metrics.frames import Tables, records
from easd.report.page import Figure, Section, make_table, number, rate

_MET = ("draft_entropy_met", "target_entropy_met", "overlap_met")
_NO_TRACE = "No item was traced, so there is no data by token."


def entropies(frames: Frames, tables: Tables) -> Section:
    """How uncertain the models are, and how far their top tokens overlap."""
    histogram, summary = tables["entropy_histogram"], tables["entropy_summary"]
    overlaps, joint = tables["overlap_counts"], tables["joint_conditions"]
    title = "Entropies and overlap"
    if histogram.empty:
        return Section(name="entropies", title=title, sentences=(_NO_TRACE,))
    system = _close_up(frames, histogram)
    sentences = []
    for row in records(summary[summary["system"] == system]):
        above = row["above_tau_h"]
        tail = f", above tau_h at {rate(above)} of positions" if above == above else ""
        sentences.append(
            f"{system}: the {row['model']}'s entropy has median {number(row['p50'], 'nats')} and "
            f"95 % quantile {number(row['p95'], 'nats')} nats{tail}."
        )
    together = joint[joint["system"] == system] if len(joint) else joint
    if len(together):
        all_met = together[list(_MET)].all(axis=1)
        sentences.append(
            "All three conditions hold together at "
            f"{rate(together.loc[all_met, 'share'].sum())} of its examined positions."
        )
    tau_h = frames.rule(system).get("tau_h")
    figures = [
        Figure(
            name="entropies",
            svg=plots.histograms(
                histogram[histogram["system"] == system],
                None if tau_h is None else float(tau_h),
            ),
            caption=f"Entropies of draft and target at the positions that {system} emitted, in "
            "traced items, over the full vocabulary"
            f"{'' if tau_h is None else '; the dotted line is the threshold of its gate'}.",
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
                f"{' '.join(_MET)} positions share",
                f"{system}: which conditions hold together",
            ),
            make_table(
                summary,
                "system model positions mean p50 p90 p95 p99 above_tau_h",
                "Entropies of all systems",
                is_open=False,
            ),
        ),
    )


def correctness(frames: Frames, tables: Tables) -> Section:
    """Whether texts with high entropy are wrong more often."""
    groups, correlations = tables["correctness_by_entropy"], tables["entropy_correlation"]
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
        meaning = "no relation detected"
        if sure:
            meaning = "high-entropy texts are wrong " + ("more" if high < 0 else "less") + " often"
        interval = f" [{number(low, 'number')}, {number(high, 'number')}]" if low == low else ""
        sentences.append(
            f"{row['system']} on {row['task']}: correlation {number(row['correlation'], 'number')}"
            f"{interval} between a text's mean target entropy and correctness; {meaning}."
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
                caption="Accuracy of traced texts in fifths from low to high entropy, with 95 % "
                "intervals over problems.",
            ),
        ),
        tables=(
            make_table(
                correlations,
                "task system samples correlation",
                "Correlations",
                is_open=len(correlations) <= 30,
            ),
            make_table(
                groups,
                "task system group entropy_low entropy_high samples accuracy",
                "Accuracy by fifths",
                is_open=False,
            ),
        ),
    )


def _close_up(frames: Frames, histogram: pd.DataFrame) -> str:
    traced = list(histogram["system"].unique())
    return str(frames.focus if frames.focus in traced else traced[0])
