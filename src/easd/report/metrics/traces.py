"""Metrics of recorded positions: entropies, overlap, refused tokens."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from easd.errors import InputError
from easd.report.metrics.frames import Frames, by_task_and_system, narrowed, ordered, share_of
from easd.runs.schema import EMITTED, EXAMINED
from easd.runs.tally import conditions_met
from easd.stats import bootstrap

MODELS = ("draft", "target")

_BINS = 40
_QUANTILES = (0.5, 0.9, 0.95, 0.99)
_GROUPS = 5
_SAMPLE = ["task", "system", "seed", "request"]
_RESAMPLES = 1000


def entropy_histogram(frames: Frames) -> pd.DataFrame:
    """Entropies at emitted positions, with the same bins for all systems and both models.

    Columns: system, model, low, high (nats), positions, share.
    """
    entropies = _entropies(frames)
    if entropies.empty:
        return pd.DataFrame()
    top = max(float(entropies["entropy"].max()), 0.1)
    edges = np.linspace(0, top, _BINS + 1)
    found = []
    for (system, model), rows in entropies.groupby(["system", "model"], observed=True, sort=True):
        counts = np.histogram(rows["entropy"], edges)[0]
        found.append(
            pd.DataFrame(
                {
                    "system": system,
                    "model": model,
                    "low": edges[:-1],
                    "high": edges[1:],
                    "positions": counts,
                    "share": counts / counts.sum(),
                }
            )
        )
    return pd.concat(found, ignore_index=True)


def entropy_summary(frames: Frames) -> pd.DataFrame:
    """Mean and quantiles of entropies at emitted positions.

    Columns: system, model, positions, mean, p50, p90, p95, p99 (nats), above_tau_h (share; empty
    for a rule without threshold).
    """
    rows = []
    for (system, model), part in _entropies(frames).groupby(
        ["system", "model"], observed=True, sort=True
    ):
        values = part["entropy"].to_numpy()
        tau_h = frames.rule(str(system)).get("tau_h")
        rows.append(
            {
                "system": system,
                "model": model,
                "positions": len(values),
                "mean": values.mean(),
                **{f"p{100 * q:.0f}": np.quantile(values, q) for q in _QUANTILES},
                "above_tau_h": math.nan if tau_h is None else (values > float(tau_h)).mean(),
            }
        )
    return pd.DataFrame(rows)


def overlap_counts(frames: Frames) -> pd.DataFrame:
    """Number of top tokens that draft and target share at examined positions.

    Columns: system, overlap (share of the top_n tokens), positions, share.
    """
    tokens = narrowed(frames.tokens, EXAMINED, ["system", "overlap"]).to_pandas().dropna()
    tokens["system"] = ordered(tokens["system"], frames.systems)
    tokens["overlap"] = tokens["overlap"].astype(float).round(4)
    counts = tokens.groupby(["system", "overlap"], observed=True).size().rename("positions")
    found = counts.reset_index()
    found["share"] = found["positions"] / found.groupby("system", observed=True)[
        "positions"
    ].transform("sum")
    return found


def joint_conditions(frames: Frames) -> pd.DataFrame:
    """Joint frequencies of the gate's conditions at examined positions.

    Columns: system, draft_entropy_met, target_entropy_met, overlap_met, positions, share.
    """
    columns = ["system", "draft_entropy", "target_entropy", "overlap"]
    tokens = narrowed(frames.tokens, EXAMINED, columns).to_pandas()
    found = []
    for system in frames.systems:
        rows = tokens[tokens["system"] == system]
        met = conditions_met(frames.rule(system), rows)
        if met is None or rows.empty:
            continue
        held = pd.DataFrame({f"{name}_met": each for name, each in met.items()})
        counts = held.value_counts().rename("positions").reset_index()
        found.append(counts.assign(system=system, share=counts["positions"] / len(rows)))
    if not found:
        return pd.DataFrame()
    return pd.concat(found, ignore_index=True)[
        ["system", "draft_entropy_met", "target_entropy_met", "overlap_met", "positions", "share"]
    ]


def entropy_of_samples(frames: Frames) -> pd.DataFrame:
    """Mean target entropy and correctness of each traced text.

    Columns: task, system, seed, problem, correct, entropy (nats).
    """
    tokens = narrowed(frames.tokens, EMITTED, [*_SAMPLE, "target_entropy"]).to_pandas()
    means = tokens.groupby(_SAMPLE)["target_entropy"].mean().rename("entropy").reset_index()
    samples = frames.samples[["task", "system", "seed", "index", "problem", "correct"]]
    samples = samples.astype({"task": str, "system": str})
    found = means.rename(columns={"request": "index"}).merge(
        samples, on=["task", "system", "seed", "index"]
    )
    found["task"] = ordered(found["task"], frames.tasks)
    found["system"] = ordered(found["system"], frames.systems)
    return found.drop(columns="index").dropna()


def correctness_by_entropy(frames: Frames) -> pd.DataFrame:
    """Accuracy of traced texts in five groups of equal size, from low to high entropy.

    Columns: task, system, group, entropy_low, entropy_high, entropy (means of texts, nats),
    samples, accuracy with its interval.
    """
    rows = []
    for task, system, group in by_task_and_system(entropy_of_samples(frames), pooled=False):
        if len(group) < 2 * _GROUPS:
            continue
        rank = group["entropy"].rank(method="first")
        groups = ((rank - 1) * _GROUPS / len(group)).astype(int)
        for fifth in range(_GROUPS):
            part = group[groups == fifth]
            problems = part.groupby("problem")["correct"].agg(["sum", "size"])
            rows.append(
                {
                    "task": task,
                    "system": system,
                    "group": fifth + 1,
                    "entropy_low": part["entropy"].min(),
                    "entropy_high": part["entropy"].max(),
                    "entropy": part["entropy"].mean(),
                    "samples": len(part),
                    **share_of("accuracy", problems["sum"], problems["size"]),
                }
            )
    return pd.DataFrame(rows)


def entropy_correlation(frames: Frames) -> pd.DataFrame:
    """Correlation of a traced text's mean target entropy with correctness.

    Columns: task, system, samples, correlation with its interval.
    """
    rows = []
    for task, system, group in by_task_and_system(entropy_of_samples(frames), pooled=False):
        x, y = group["entropy"], group["correct"].astype(float)
        sums = pd.DataFrame({"n": 1.0, "x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y})
        by_problem = sums.groupby(group["problem"].to_numpy()).sum().to_numpy()
        value = _correlation(by_problem.sum(0)[None])[0]
        low = high = math.nan
        try:
            found = bootstrap(
                lambda weights, sums=by_problem: _correlation(weights @ sums),
                len(by_problem),
                resamples=_RESAMPLES,
            )
            low, high = found.low, found.high
        except InputError:  # too few problems, or all right or all wrong in some resample
            pass
        rows.append(
            {
                "task": task,
                "system": system,
                "samples": len(group),
                "correlation": value,
                "correlation_low": low,
                "correlation_high": high,
            }
        )
    return pd.DataFrame(rows)


def replacements(frames: Frames) -> pd.DataFrame:
    """Penalised tokens of traced items and the replacement of each.

    Columns: system, token, refused (its text), replacement (text), count.
    """
    keys = ["system", "task", "seed", "request", "position"]
    refused = narrowed(frames.tokens, ("penalised",), [*keys, "token", "text"]).to_pandas()
    instead = narrowed(frames.tokens, ("replacement",), [*keys, "text"]).to_pandas()
    both = refused.rename(columns={"text": "refused"}).merge(
        instead.rename(columns={"text": "replacement"}), on=keys
    )
    both["system"] = ordered(both["system"], frames.systems)
    counts = both.groupby(["system", "token", "refused", "replacement"], observed=True).size()
    return (
        counts.rename("count")
        .reset_index()
        .sort_values(["system", "count"], ascending=[True, False], ignore_index=True)
    )


def refused_tokens(frames: Frames) -> pd.DataFrame:
    """Penalised tokens of traced items, most frequent first.

    Columns: system, token, refused (its text), count, share (of the system's penalties), examined,
    refusal_rate, target_prob (mean probability at the target), instead (its three most frequent
    replacements with their counts).
    """
    pairs = replacements(frames)
    columns = ["system", "token", "outcome", "target_prob"]
    tokens = narrowed(frames.tokens, EXAMINED, columns).to_pandas()
    tokens = tokens[tokens["system"].isin(pairs["system"].unique())]
    if pairs.empty:
        return pd.DataFrame()
    keys = ["system", "token"]
    examined = tokens.groupby(keys).size().rename("examined").reset_index()
    penalised = tokens[tokens["outcome"] == "penalised"]
    prob = penalised.groupby(keys)["target_prob"].mean().reset_index()
    found = pairs.groupby([*keys, "refused"], observed=True)["count"].sum().reset_index()
    first = pairs.groupby(keys, observed=True).head(3)
    named = first["replacement"].map(quoted) + " (" + first["count"].astype(str) + ")"
    instead = named.groupby([first["system"], first["token"]], observed=True).agg(", ".join)
    found = found.astype({"system": str})
    found = found.merge(examined, on=keys).merge(prob, on=keys)
    found["share"] = found["count"] / found.groupby("system")["count"].transform("sum")
    found["refusal_rate"] = found["count"] / found["examined"]
    instead = instead.rename("instead").reset_index().astype({"system": str})
    found = found.merge(instead, on=keys)
    found["system"] = ordered(found["system"], frames.systems)
    order = ["system", "token", "refused", "count", "share", "examined", "refusal_rate"]
    return found.sort_values(
        ["system", "count", "token"], ascending=[True, False, True], ignore_index=True
    )[[*order, "target_prob", "instead"]]


def quoted(text: str) -> str:
    """A token in quotes, which make its spaces visible."""
    return "“" + text.replace("\n", "⏎").replace("\t", "⇥") + "”"


def _entropies(frames: Frames) -> pd.DataFrame:
    """One row per emitted position and model: system, model, entropy."""
    columns = [f"{model}_entropy" for model in MODELS]
    tokens = narrowed(frames.tokens, EMITTED, ["system", *columns]).to_pandas()
    long = tokens.rename(columns=dict(zip(columns, MODELS, strict=True))).melt(
        "system", var_name="model", value_name="entropy"
    )
    long["system"] = ordered(long["system"], frames.systems)
    return long.dropna()


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Pearson's, from sums of 1, x, y, x², y² and xy, [R, 6]."""
    n, x, y, xx, yy, xy = sums.T
    variances = (n * xx - x * x) * (n * yy - y * y)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variances > 0, (n * xy - x * y) / np.sqrt(variances), np.nan)
