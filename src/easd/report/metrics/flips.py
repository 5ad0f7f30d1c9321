"""Texts that a system turned from right to wrong or back, parted at their first different token."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from easd.report.metrics.differences import paired_rows
from easd.report.metrics.frames import Frames, records

LOST, GAINED = "lost", "gained"


def flips(frames: Frames, system: str | None = None, *, limit: int = 5) -> pd.DataFrame:
    """The first `limit` flips each way on every task, in the task's order, one an item.

    Columns: task, system, item, seed, direction (lost: the baseline is right and the system wrong;
    gained: the reverse), prompt, answers (gold), baseline_answer, answer, shared (text in front of
    the first different token), baseline_token, token, baseline_rest, rest, place (of that token,
    counted from 0; none for texts of servers, which are parted at the first different character).
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
            rows.append({**found, **_parted(frames, row, vocabulary)})
    return pd.DataFrame(rows)


def part(
    first: list[int], second: list[int], texts: tuple[str, str], vocabulary: dict[int, str]
) -> tuple[int, str, list[tuple[str, str]]]:
    """Where two texts part: the place, what they share, and each one's next token and its rest.

    With a token of unknown text they part at the first different character instead, and no token
    is named.
    """
    pairs = zip(first, second, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
    if all(token in vocabulary for token in (*first, *second)):
        shared = "".join(vocabulary[token] for token in first[:place])
        ends = [
            (
                "".join(vocabulary[token] for token in ids[place : place + 1]),
                "".join(vocabulary[token] for token in ids[place + 1 :]),
            )
            for ids in (first, second)
        ]
        return place, shared, ends
    return place, *_part_characters(texts)


def _part_characters(texts: tuple[str, str]) -> tuple[str, list[tuple[str, str]]]:
    both = zip(*texts, strict=False)
    at = next((i for i, (a, b) in enumerate(both) if a != b), min(map(len, texts)))
    return texts[0][:at], [("", text[at:]) for text in texts]


def _parted(frames: Frames, row: dict[str, Any], vocabulary: dict[int, str]) -> dict[str, Any]:
    theirs, ours = frames.texts.take([row["baseline_row"], row["row"]]).to_pylist()
    texts = (theirs["text"], ours["text"])
    if theirs["token_ids"] is None or ours["token_ids"] is None:
        place, shared, ends = None, *_part_characters(texts)
    else:
        place, shared, ends = part(theirs["token_ids"], ours["token_ids"], texts, vocabulary)
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
        "task": row["task"],
        "system": row["system"],
        "item": row["item"],
        "seed": row["seed"],
        "prompt": item["prompt"],
        "answers": list(item["answers"] if item["answers"] is not None else []),
    }


def _vocabulary(tokens: pa.Table) -> dict[int, str]:
    """Texts of all tokens that traced items name."""
    texts = tokens.select(["token", "text"]).group_by("token").aggregate([("text", "min")])
    texts = texts.filter(pc.field("text_min").is_valid())
    return dict(zip(texts["token"].to_pylist(), texts["text_min"].to_pylist(), strict=True))
