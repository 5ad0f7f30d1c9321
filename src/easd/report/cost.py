"""Sections on what a system costs: time, and work."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from easd.report import figures as plots
from easd.report.cells import number
from easd.report.metrics import POOLED, Frames
from easd.report.metrics.frames import records
from easd.report.metrics.speed import SPEED_PARTS
from easd.report.page import Figure, Section, Table, tables_by_task

_SPEED = (
    "system",
    "tokens_per_second",
    "improvement",
    "draft_ms",
    "target_ms",
    "verify_ms",
    "other_ms",
    "units",
    "batch",
)
_THEORY = (
    "system",
    "gamma",
    "acceptance",
    "draft_forward_ms",
    "target_forward_ms",
    "cost",
    "block_cost",
    "improvement",
    "predicted",
    "predicted_wide",
)
_DRAFTING = ("system", "acceptance", "utilisation", "block_efficiency", "rewritten")
_WORK = (
    "system",
    "tokens",
    "by_draft",
    "by_target",
    "draft_share",
    "target_forwards",
    "draft_forwards",
    "flops_per_token",
    "relative_flops",
)


def speeds(frames: Frames, table: pd.DataFrame, drafted: pd.DataFrame) -> Section:
    """Speed, where the time went, and what theory expects."""
    shown = _overall(table)
    sentences = []
    for name in dict.fromkeys([_speculative(frames), frames.focus]):
        rows = shown[shown["system"] == name]
        if len(rows) and name != frames.baseline:
            sentences.append(_speed_sentence(records(rows)[0], frames.baseline))
    efficient = _overall(drafted).dropna(subset=["block_efficiency"])
    if len(efficient):
        best = efficient.nlargest(1, "block_efficiency").iloc[0]
        sentences.append(
            f"Most tokens per target forward: {best['system']} with "
            f"{number(best['block_efficiency'], 'number')}."
        )
    sentences.append("All times are of this machine, this batch size and these models.")
    warnings = []
    if frames.run.get("config", {}).get("coupling") == "shared":
        warnings.append(
            "Draft and target shared their noise, which makes paired differences sharp; acceptance "
            "rates, and with them all times here, are those of the shared-noise coupling, and "
            "acceptance with independent noise, as deployed, is higher."
        )
    if any(frames.kind(system) == "rsd" for system in frames.systems):
        warnings.append(
            "Reward-guided decoding reads its text anew at every step here, and the reward model's "
            "time counts as verification."
        )
    parts = {f"{part}_ms": str(part) for part in SPEED_PARTS}
    return Section(
        name="speed",
        title="Speed",
        sentences=tuple(sentences),
        warnings=tuple(warnings),
        figures=(
            Figure(
                name="speed",
                svg=plots.stacked(shown, parts, label="wall time a token, ms"),
                caption="Wall time of a decoded token by what it went into"
                f"{', over all tasks' if len(frames.present_tasks) > 1 else ''}. “Other” takes in "
                "prompts and commits tokens.",
            ),
        ),
        tables=(
            *_titled(table, _SPEED, "speed and its breakdown, a token"),
            *_titled(
                table[table["acceptance"].notna()], _THEORY, "measured and expected by Theorem 3.8"
            ),
            *_titled(drafted, _DRAFTING, "drafting"),
        ),
    )


def works(frames: Frames, table: pd.DataFrame) -> Section:
    """Tokens, forwards and operations."""
    shown = _overall(table)
    sentences = []
    mine = shown[shown["system"] == frames.focus]
    if len(mine):
        row = mine.iloc[0]
        sentences.append(
            f"{frames.focus}: {number(row['draft_share'], 'percent')} % of its tokens were written "
            f"by the draft, and a token took {number(row['relative_flops'], 'factor')} times the "
            f"operations of {frames.baseline}."
        )
    sentences.append(
        "Operations are 2 times parameters times positions processed: proposed tokens and one more "
        "a block at the target, proposed tokens at the draft. Reading prompts is left out, and so "
        "are a reward model and rereading of reward-guided steps."
    )
    return Section(
        name="work",
        title="Tokens, forwards, operations",
        sentences=tuple(sentences),
        tables=tables_by_task(table, _WORK),
    )


def _overall(table: pd.DataFrame) -> pd.DataFrame:
    """The pooled rows, or those of the only task."""
    pooled = table[table["task"] == POOLED]
    return pooled if len(pooled) else table


def _speculative(frames: Frames) -> str | None:
    return next((s for s in frames.systems if frames.kind(s) == "speculative"), None)


def _speed_sentence(row: dict, baseline: str) -> str:
    factor = row["improvement"]
    ends = [row[f"improvement_{end}"] for end in ("low", "high")]
    interval = ""
    if ends[0] == ends[0]:
        interval = f" [{number(ends[0], 'factor')}, {number(ends[1], 'factor')}]"
    sentence = (
        f"{row['system']} decodes {number(row['tokens_per_second'], 'number')} tokens a second, "
        f"{number(factor, 'factor')}{interval} times the speed of {baseline}"
    )
    if row["predicted"] == row["predicted"]:
        sentence += (
            f"; Theorem 3.8 expects {number(row['predicted'], 'factor')} from an acceptance rate "
            f"of {number(row['acceptance'], 'percent')} % and c = {number(row['cost'], 'number')}, "
            f"or {number(row['predicted_wide'], 'factor')} counting that a block's forward costs "
            f"{number(row['block_cost'], 'factor')} times a token's"
        )
    return sentence + "."


def _titled(table: pd.DataFrame, columns: tuple[str, ...], title: str) -> list[Table]:
    return [
        replace(found, title=f"{found.title}: {title}") for found in tables_by_task(table, columns)
    ]
