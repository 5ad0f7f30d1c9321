"""Opening rates of gates, and accuracy with and without penalties."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from easd.diagnose.calibration import NO_OP_RATE
from easd.errors import InputError
from easd.report.metrics.accuracy import accuracy, paired_rows
from easd.report.metrics.frames import (
    POOLED,
    Frames,
    by_task_and_system,
    columns_of,
    ordered,
    share_of,
)
from easd.report.metrics.speed import drafting
from easd.stats import paired_difference

_CONDITIONS = ("draft_entropy", "target_entropy", "overlap")


def firing(frames: Frames) -> pd.DataFrame:
    """Gates, conditions and penalties as shares of examined positions, of systems with a gate.

    Columns: task, system, examined, penalised, gate_rate, penalty_rate, draft_entropy_rate,
    target_entropy_rate and overlap_rate with their intervals, no_op.
    """
    rows = []
    for task, system, group in by_task_and_system(frames.by_problem):
        if group["gate_open"].isna().all():
            continue
        gate = share_of("gate_rate", group["gate_open"], group["examined"])
        rows.append(
            {
                "task": task,
                "system": system,
                "examined": int(group["examined"].sum()),
                "penalised": int(group["penalised"].sum()),
                **gate,
                **share_of("penalty_rate", group["penalised"], group["examined"]),
                **{
                    name: value
                    for c in _CONDITIONS
                    for name, value in share_of(
                        f"{c}_rate", group[f"over_{c}"], group["examined"]
                    ).items()
                },
                "no_op": gate["gate_rate"] < NO_OP_RATE,
            }
        )
    return pd.DataFrame(rows)


def tradeoffs(frames: Frames) -> pd.DataFrame:
    """Accuracy, penalty rate and block efficiency.

    Columns: task, system, accuracy, penalty_rate and block_efficiency with their intervals.
    """
    keys = ["task", "system"]
    found = accuracy(frames)[[*keys, "accuracy", "accuracy_low", "accuracy_high"]]
    ends = ("", "_low", "_high")
    efficiency = [f"block_efficiency{end}" for end in ends]
    penalty = [f"penalty_rate{end}" for end in ends]
    found = found.merge(drafting(frames)[[*keys, *efficiency]], on=keys)
    fired = firing(frames)
    if fired.empty:
        return found.assign(**dict.fromkeys(penalty, math.nan))
    return found.merge(fired[[*keys, *penalty]], on=keys, how="left")


def penalised_samples(frames: Frames) -> pd.DataFrame:
    """Texts with and without penalised tokens, each compared with the baseline.

    Columns: task, system, penalties (some or none), samples, accuracy, baseline_accuracy,
    difference with its interval, p_value.
    """
    pairs = paired_rows(frames, frames.baseline)
    gated = pairs[pairs["gate_open"].notna()]
    rows = []
    for task, system, group in by_task_and_system(gated):
        for name, part in (
            ("some", group[group["penalised"] > 0]),
            ("none", group[group["penalised"] == 0]),
        ):
            if part.empty:
                continue
            ours, theirs = part["correct"].to_numpy(), part["baseline_correct"].to_numpy()
            try:
                found = paired_difference(ours, theirs, part["problem"].to_numpy())
                difference = {**columns_of("difference", found), "p_value": found.p_value}
            except InputError:  # a single problem allows no interval
                difference = {"difference": float(ours.mean() - theirs.mean())}
            rows.append(
                {
                    "task": task,
                    "system": system,
                    "penalties": name,
                    "samples": len(part),
                    "accuracy": ours.mean(),
                    "baseline_accuracy": theirs.mean(),
                    **difference,
                }
            )
    return pd.DataFrame(rows)


def sensitivity(frames: Frames) -> pd.DataFrame:
    """Accuracy and firing over the thresholds, where systems differ in nothing else.

    Columns: grid (the rule and what its systems share), task, system, tau_h, tau_o, accuracy with
    its interval, gate_rate, penalty_rate.
    """
    grids = threshold_grids(frames)
    if not grids:
        return pd.DataFrame()
    points = pd.DataFrame(
        {"grid": grid, "system": system, "tau_h": tau_h, "tau_o": tau_o}
        for grid, systems in grids.items()
        for system, (tau_h, tau_o) in systems.items()
    )
    keys = ["task", "system"]
    found = accuracy(frames)[[*keys, "accuracy", "accuracy_low", "accuracy_high"]]
    fired = firing(frames)
    if len(fired):
        found = found.merge(fired[[*keys, "gate_rate", "penalty_rate"]], on=keys, how="left")
    found = points.merge(found, on="system")
    found["task"] = ordered(found["task"], [*frames.tasks, POOLED])
    found = found.sort_values(["grid", "task", "tau_h", "tau_o"], ignore_index=True)
    return found.astype({"task": str})


def threshold_grids(frames: Frames) -> dict[str, dict[str, tuple[float, float]]]:
    """Systems by grid: three or more of one rule whose thresholds alone differ."""
    grids: dict[str, dict[str, tuple[float, float]]] = {}
    for system in frames.systems:
        rule = frames.rule(system)
        if "tau_h" not in rule or "tau_o" not in rule:
            continue
        thresholds = (float(rule.pop("tau_h")), float(rule.pop("tau_o")))
        cells = grids.setdefault(_label(rule, frames.description(system)), {})
        # A rule with two names is one cell.
        if thresholds not in cells.values():
            cells[system] = thresholds
    return {name: found for name, found in grids.items() if len(found) >= 3}


def _label(rule: dict[str, Any], description: dict[str, Any]) -> str:
    settings = description.get("settings") or {}
    rest = {**rule, **settings}
    name = str(rest.pop("name"))
    fields = ", ".join(f"{key} {value}" for key, value in rest.items())
    return f"{name}: {fields}" if fields else name
