"""Wall time and its breakdown, drafting, operations, servers, and the predicted speed-up."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from easd.report.metrics.columns import interval_of
from easd.report.metrics.frames import (
    Frames,
    Interval,
    by_task_and_system,
    columns_of,
    ratio_of,
    records,
    share_of,
)
from easd.stats import bootstrap

SPEED_PARTS = ("draft", "target", "verify", "other")

_CHUNK = ["task", "seed", "first"]
_RESAMPLES = 1000

LEAST_CHUNKS = 5
"""Fewest chunks for an interval: fewer say next to nothing about how speeds vary."""


def speed(frames: Frames) -> pd.DataFrame:
    """Decoding speed of every system, from the wall time of chunks.

    Columns: task, system, chunks, batch, tokens, seconds, tokens_per_second with its interval,
    improvement over the baseline with its interval, draft_ms, target_ms, verify_ms and other_ms
    (a token), draft_forward_ms, target_forward_ms, cost (the coefficient c), block_cost (target
    forward over a block / the baseline's forward), acceptance, gamma, predicted, predicted_wide.
    """
    rows = []
    is_target = frames.kind(frames.baseline) == "target"
    baseline = {
        t: group for t, s, group in by_task_and_system(frames.chunks) if s == frames.baseline
    }
    acceptance = {
        (row["task"], row["system"]): row["acceptance"] for row in records(drafting(frames))
    }
    for task, system, group in by_task_and_system(frames.chunks):
        tokens, seconds = group["tokens"].sum(), group["seconds"].sum()
        forward = _forwards(group)
        alone = _forwards(baseline[task]) if task in baseline and is_target else {}
        alpha = acceptance.get((task, system), math.nan)
        gamma = frames.setting(system, "gamma")
        gamma = None if gamma == "auto" else gamma  # Blocks differ.
        cost = forward["draft"] / forward["target"]
        wide = forward["target"] / alone.get("target", math.nan)
        rows.append(
            {
                "task": task,
                "system": system,
                "chunks": len(group),
                "batch": int(group["batch"].max()),
                "tokens": int(tokens),
                "seconds": seconds,
                **_speed_of(group),
                **_improvement(group, baseline.get(task)),
                **{
                    f"{p}_ms": 1000 * group[f"{p}_seconds"].sum(min_count=1) / tokens
                    for p in SPEED_PARTS
                },
                "draft_forward_ms": forward["draft"],
                "target_forward_ms": forward["target"],
                "cost": cost,
                "block_cost": wide if system != frames.baseline else math.nan,
                "acceptance": alpha,
                "gamma": gamma if not math.isnan(alpha) else None,
                "predicted": expected_improvement(alpha, cost, gamma),
                "predicted_wide": expected_improvement(alpha, cost, gamma) / wide,
            }
        )
    return pd.DataFrame(rows)


def expected_improvement(alpha: float, cost: float, gamma: int | None) -> float:
    """Walltime improvement by Theorem 3.8 (arXiv:2211.17192); NaN without drafting or one gamma."""
    if gamma is None or math.isnan(alpha) or math.isnan(cost):
        return math.nan
    tokens = gamma + 1 if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)
    return tokens / (gamma * cost + 1)


def drafting(frames: Frames) -> pd.DataFrame:
    """Acceptance rate, draft utilisation and block efficiency of systems that draft.

    Columns: task, system, acceptance, utilisation, block_efficiency and rewritten (of the steps of
    reward-guided decoding), each with its interval.
    """
    return pd.DataFrame(
        {
            "task": task,
            "system": system,
            **share_of("acceptance", group["accepted"], verified * group["examined"]),
            **share_of("utilisation", group["accepted"], drafted * group["proposed"]),
            **ratio_of("block_efficiency", group["new_tokens"], group["blocks"]),
            **share_of("rewritten", group["rewritten"], group["steps"]),
        }
        for task, system, group in by_task_and_system(frames.by_problem)
        for drafted in [math.nan if frames.kind(system) == "draft" else 1]
        for verified in [math.nan if frames.kind(system) == "rsd" else drafted]
    )


def work(frames: Frames) -> pd.DataFrame:
    """Tokens, forwards and operations of each system, which do not depend on the machine.

    A position costs 2 operations per parameter. Prompts, and in reward-guided decoding the reward
    model and processing the text again, are not counted.

    Columns: task, system, tokens, by_draft, by_target, draft_share, target_forwards,
    draft_forwards, target_positions, draft_positions, flops, flops_per_token, relative_flops (per
    token, to the baseline).
    """
    models = frames.run.get("models") or {}
    target_size = models.get("target_parameters") or 0
    draft_size = models.get("draft_parameters") or 0
    rows = []
    for task, system, group in by_task_and_system(frames.by_problem):
        count = group[["new_tokens", "blocks", "proposed", "accepted"]].sum()
        kind = frames.kind(system)
        by_draft, target, draft = count["accepted"], count["blocks"], count["proposed"]
        verified = 0 if kind in ("draft", "rsd") else draft
        target_positions = target + verified
        if frames.rule(system).get("draft_at_bonus"):
            draft += target
        flops = 2.0 * (target_size * target_positions + draft_size * draft)
        rows.append(
            {
                "task": task,
                "system": system,
                "tokens": int(count["new_tokens"]),
                "by_draft": int(by_draft),
                "by_target": int(count["new_tokens"] - by_draft),
                "draft_share": by_draft / count["new_tokens"] if count["new_tokens"] else math.nan,
                "target_forwards": int(target),
                "draft_forwards": int(draft),
                "target_positions": int(target_positions),
                "draft_positions": int(draft),
                "flops": flops,
                "flops_per_token": flops / count["new_tokens"] if count["new_tokens"] else math.nan,
            }
        )
    table = pd.DataFrame(rows)
    if len(table):
        first = table[table["system"] == frames.baseline].set_index("task")["flops_per_token"]
        table["relative_flops"] = table["flops_per_token"] / table["task"].map(first)
    return table


def _speed_of(group: pd.DataFrame) -> Interval:
    found = ratio_of("tokens_per_second", group["tokens"], group["seconds"])
    if len(group) < LEAST_CHUNKS:
        found |= dict.fromkeys(interval_of("tokens_per_second"), math.nan)
    return found


def _forwards(group: pd.DataFrame) -> dict[str, float]:
    """Milliseconds of one batched forward of each model."""
    found = {}
    for model in ("draft", "target"):
        steps = group[f"{model}_steps"].sum()
        found[model] = 1000 * group[f"{model}_seconds"].sum() / steps if steps else math.nan
    return found


def _improvement(group: pd.DataFrame, baseline: pd.DataFrame | None) -> Interval:
    """Walltime improvement over the baseline, on the chunks that both have."""
    names = ["improvement", *interval_of("improvement")]
    unknown = dict.fromkeys(names, math.nan)
    if baseline is None:
        return unknown
    both = group.merge(baseline, on=_CHUNK, suffixes=("", "_of_baseline"))
    if both.empty:
        return unknown
    ours, theirs = both["seconds"].to_numpy(), both["seconds_of_baseline"].to_numpy()
    tokens, its_tokens = (both[f"tokens{end}"].to_numpy(float) for end in ("", "_of_baseline"))

    def improvement(weights: np.ndarray) -> np.ndarray:
        return (weights @ theirs) / (weights @ its_tokens) * (weights @ tokens) / (weights @ ours)

    if len(both) < LEAST_CHUNKS:
        return {**unknown, "improvement": float(improvement(np.ones((1, len(both))))[0])}
    return columns_of("improvement", bootstrap(improvement, len(both), resamples=_RESAMPLES))


_SPEED = ("batch", "chunks", "tokens_per_second", "improvement")
_DRAFTING = ("acceptance", "utilisation", "block_efficiency")


def serving(frames: Frames) -> pd.DataFrame:
    """Throughput and latency of systems on servers, and drafting if the server reports it.

    Columns: task, system, batch, chunks, tokens_per_second and improvement with their intervals,
    request_p50, request_p95, acceptance, utilisation, block_efficiency and penalty_rate with their
    intervals. Empty unless servers decoded.
    """
    if not frames.is_remote:
        return pd.DataFrame()
    keys = ["task", "system"]
    times = pd.DataFrame(
        {
            "task": task,
            "system": system,
            "request_p50": group["seconds"].quantile(0.5),
            "request_p95": group["seconds"].quantile(0.95),
        }
        for task, system, group in by_task_and_system(frames.samples)
    )
    penalties = pd.DataFrame(
        {
            "task": task,
            "system": system,
            **share_of("penalty_rate", group["penalised"], group["examined"]),
        }
        for task, system, group in by_task_and_system(frames.by_problem)
    )
    return (
        _with_intervals(speed(frames), _SPEED)
        .merge(times, on=keys)
        .merge(_with_intervals(drafting(frames), _DRAFTING), on=keys)
        .merge(penalties, on=keys)
    )


def _with_intervals(table: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    wanted = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    return table[["task", "system", *(name for name in wanted if name in table)]]
