"""Sections on what a system costs: time, operations, and the times of servers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from easd.report import figures as plots
from easd.report.metrics import Frames
from easd.report.metrics.frames import Tables, records
from easd.report.metrics.speed import LEAST_CHUNKS, SPEED_PARTS
from easd.report.page import (
    Figure,
    Section,
    number,
    overall,
    tables_by_task,
    with_interval,
)

_SPEED = "system tokens_per_second improvement draft_ms target_ms verify_ms other_ms chunks batch"
_THEORY = (
    "system gamma acceptance draft_forward_ms target_forward_ms cost block_cost improvement "
    "predicted predicted_wide"
)
_DRAFTING = "system acceptance utilisation block_efficiency rewritten"
_WORK = (
    "system tokens by_draft by_target draft_share target_forwards draft_forwards flops_per_token "
    "relative_flops"
)


def speeds(frames: Frames, tables: Tables) -> Section:
    """Speed, its breakdown, and what theory predicts."""
    table, drafted = tables["speed"], tables["drafting"]
    shown = overall(table)
    sentences = []
    for name in dict.fromkeys([frames.first_of("speculative"), frames.focus]):
        rows = shown[shown["system"] == name]
        if len(rows) and name != frames.baseline:
            sentences.append(_speed_sentence(records(rows)[0], frames.baseline))
    efficient = overall(drafted).dropna(subset=["block_efficiency"])
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
            "Draft and target shared their noise, which makes paired differences precise. "
            "Acceptance rates, and with them all times here, are those of the shared-noise "
            "coupling; acceptance with independent noise, as deployed, is higher."
        )
    if any(frames.kind(system) == "rsd" for system in frames.systems):
        warnings.append(
            "Reward-guided decoding rereads its text at every step here, and the reward model's "
            "time counts as verification."
        )
    warnings += _few_chunks(shown)
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
                caption="Wall time of a decoded token by part"
                f"{', over all tasks' if len(frames.present_tasks) > 1 else ''}. “Other” is "
                "processing prompts and committing tokens.",
            ),
        ),
        tables=(
            *tables_by_task(table, _SPEED, "speed and its breakdown, a token"),
            *tables_by_task(
                table[table["acceptance"].notna()], _THEORY, "measured and expected by Theorem 3.8"
            ),
            *tables_by_task(drafted, _DRAFTING, "drafting"),
        ),
    )


def works(frames: Frames, tables: Tables) -> Section:
    """Tokens, forwards and operations."""
    table = tables["work"]
    shown = overall(table)
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
        "a block at the target, proposed tokens at the draft. Prompts, reward models and the "
        "rereading of reward-guided steps are not counted."
    )
    return Section(
        name="work",
        title="Tokens, forwards, operations",
        sentences=tuple(sentences),
        tables=tables_by_task(table, _WORK),
    )


def _few_chunks(table: pd.DataFrame) -> list[str]:
    fewest = int(table["chunks"].min()) if len(table) else LEAST_CHUNKS
    if fewest >= LEAST_CHUNKS:
        return []
    return [
        f"Some speeds have no interval: an interval takes {LEAST_CHUNKS} chunks of texts decoded "
        f"together, and there are {fewest}. Decode more items, or use a smaller --set chunk=; "
        "easd bench measures speed by itself."
    ]


def _speed_sentence(row: dict, baseline: str) -> str:
    sentence = (
        f"{row['system']} decodes {number(row['tokens_per_second'], 'number')} tokens a second, "
        f"{with_interval(row, 'improvement', 'factor')} times the speed of {baseline}"
    )
    if row["predicted"] == row["predicted"]:
        sentence += (
            f"; Theorem 3.8 expects {number(row['predicted'], 'factor')} from an acceptance rate "
            f"of {number(row['acceptance'], 'percent')} % and c = {number(row['cost'], 'number')}, "
            f"or {number(row['predicted_wide'], 'factor')} counting that a block's forward costs "
            f"{number(row['block_cost'], 'factor')} times a token's"
        )
    return sentence + "."


_SERVING = (
    "system batch chunks tokens_per_second improvement request_p50 request_p95 acceptance "
    "utilisation block_efficiency penalty_rate"
)


def served(frames: Frames, tables: Tables) -> Section:
    """Throughput and latency of servers, and what they do not report."""
    table = tables["serving"]
    sentences = [_speed(row) for row in records(overall(table))]
    sentences.append(
        "Times are of requests from this machine, retries included, and depend on the load of "
        "servers and network at that time."
    )
    sentences.append(
        "Each text had its own noise: two systems' texts of one problem share no random numbers, "
        "unless their server draws the same from equal seeds."
    )
    sentences.append(
        "Servers report no tokens and no entropies; firing rates, thresholds, refused tokens and "
        "operations are left out."
    )
    return Section(
        name="serving",
        title="Servers",
        sentences=tuple(sentences),
        warnings=tuple(_few_chunks(overall(table))),
        tables=tables_by_task(table, _SERVING),
    )


def _speed(row: dict[str, Any]) -> str:
    tokens = row["tokens_per_second"]
    rate = f"{number(tokens, 'number')} tokens a second with " if tokens == tokens else ""
    return (
        f"{row['system']}: {rate}{row['batch']} requests under way, half of them answered within "
        f"{number(row['request_p50'], 'number')} s."
    )
