"""Columns of an evaluation's tables, with unit and definition in each field's metadata.

A cell is one system on one task with one seed; an item is one problem. `samples` has one row a
decoded text, `units` one row a batch of texts decoded together, and `tokens` (of the first items of
each task only) the rows of a trace with their cell.
"""

from __future__ import annotations

import pyarrow as pa

from easd.runs.schema import PARTS, column
from easd.runs.schema import TOKENS as TRACE_TOKENS

FORMAT = 1

_NAME = pa.dictionary(pa.int32(), pa.string())

CELL = (
    column("system", _NAME, "name", "the rule with its fields and settings, as named in run.json"),
    column("task", _NAME, "name", "the task, as named in run.json"),
    column(
        "seed", pa.int32(), "number", "decides, with the item's index, all randomness of a text"
    ),
)

SAMPLES = pa.schema(
    [
        *CELL,
        column("item", pa.string(), "name", "the problem's id within its task"),
        column("index", pa.int32(), "index", "the problem's place in its task"),
        column("text", pa.string(), "text", "the decoded text without special tokens"),
        column(
            "token_ids",
            pa.list_(pa.int32()),
            "token ids",
            "the decoded tokens; null from an endpoint, which tells no tokens",
        ),
        column("answer", pa.string(), "text", "the answer read from the text, or null"),
        column("correct", pa.bool_(), "yes or no", "whether the answer is right"),
        column("failure", pa.string(), "text", "why grading failed (counted as wrong), or null"),
        column("finish_reason", _NAME, "name", "eos, stop or length; an endpoint's own word"),
        column("prompt_tokens", pa.int32(), "tokens", "length of the prompt"),
        column("new_tokens", pa.int32(), "tokens", "length of the text"),
        column("blocks", pa.int32(), "forwards", "target forwards the text took part in"),
        column("proposed", pa.int32(), "tokens", "draft tokens proposed"),
        column("examined", pa.int32(), "tokens", "draft positions up to the first refusal of each"),
        column("accepted", pa.int32(), "tokens", "draft tokens kept"),
        column("penalised", pa.int32(), "tokens", "draft tokens refused by the gate"),
        column("gate_open", pa.float64(), "tokens", "sum of the gate over examined positions"),
        column(
            "over_draft_entropy",
            pa.int32(),
            "tokens",
            "examined positions that meet the draft-entropy condition; null for a rule without it",
        ),
        column(
            "over_target_entropy",
            pa.int32(),
            "tokens",
            "examined positions that meet the target-entropy condition; null likewise",
        ),
        column(
            "over_overlap",
            pa.int32(),
            "tokens",
            "examined positions that meet the overlap condition; null likewise",
        ),
        column(
            "seconds",
            pa.float64(),
            "s",
            "from request to answer, with what was sent again; null unless from an endpoint",
        ),
        column("steps", pa.int32(), "steps", "reasoning steps drafted; null unless reward-guided"),
        column("rewritten", pa.int32(), "steps", "steps the target rewrote; null likewise"),
    ]
)

UNITS = pa.schema(
    [
        *CELL,
        column("first", pa.int32(), "index", "index of the unit's first item"),
        column("texts", pa.int32(), "texts", "texts decoded"),
        column("batch", pa.int32(), "texts", "most texts decoded at once"),
        column("tokens", pa.int64(), "tokens", "tokens decoded"),
        column("target_steps", pa.int64(), "forwards", "batched target forwards"),
        column("draft_steps", pa.int64(), "forwards", "batched draft forwards"),
        *(
            column(f"{part}_seconds", pa.float64(), "s", f"wall time of the engine's part {part}")
            for part in PARTS
        ),
        column("seconds", pa.float64(), "s", "wall time of decoding, recording left out"),
    ]
)

TOKENS = pa.schema([*CELL, *TRACE_TOKENS])

ITEMS = pa.schema(
    [
        CELL[1],
        column("item", pa.string(), "name", "the problem's id within its task"),
        column("index", pa.int32(), "index", "the problem's place in its task"),
        column(
            "prompt", pa.string(), "text", "what was asked, without system message and template"
        ),
        column("answers", pa.list_(pa.string()), "texts", "answers that count as right"),
    ]
)

SCHEMAS = {"samples": SAMPLES, "units": UNITS, "tokens": TOKENS, "items": ITEMS}
