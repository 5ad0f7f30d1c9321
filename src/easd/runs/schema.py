"""Tables of every kind of run; each field's metadata has its unit and definition.

A *trace* is what `easd generate --trace` decoded, token by token. An *evaluation* is a grid of
cells: one system on one task with one seed each; its tokens are those of each task's first items.
A *bench* is one row for each timed run of a system.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

FORMAT = 3
Kind = Literal["trace", "evaluation", "bench"]
TOP = 5  # Most probable tokens kept per position for inspectors.

OUTCOMES = ("accepted", "rejected", "penalised", "discarded", "replacement", "bonus")
EMITTED = ("accepted", "replacement", "bonus")  # Rows whose token stands in the text.
EXAMINED = ("accepted", "rejected", "penalised")  # Up to the first refusal of a block.
_TIMED = {
    "prefill": "taking in new prompts and caching them",
    "draft": "drafting, processors included",
    "target": "the target's forward",
    "verify": "the target's processors and of verification",
    "commit": "committing tokens",
}
PARTS = tuple(_TIMED)

_NAME = pa.dictionary(pa.int32(), pa.string())


def column(name: str, kind: pa.DataType, unit: str, definition: str) -> pa.Field:
    """A field that says its unit and what it means."""
    return pa.field(name, kind, metadata={"unit": unit, "definition": definition})


_RUN = column("run", _NAME, "name", "the run's id, as in run.json")
_SAMPLE = column(
    "sample", pa.int32(), "index", "the text, counted in the order in which decoding began"
)
_REQUEST = column(
    "request",
    pa.int64(),
    "index",
    "the number that keys the text's randomness together with the seed; "
    "prompt i's j-th text of n has i * n + j",
)
_TEXT = column(
    "text",
    pa.string(),
    "text",
    "the token as it continues a text; U+FFFD where it holds a part of a character",
)
_STEP = column("step", pa.int64(), "index", "the verification step within the run")
_DECODED = column("text", pa.string(), "text", "the decoded text without special tokens")
_ANSWER = column("answer", pa.string(), "text", "the answer read from the text, or null")
_PROMPT_TOKENS = column("prompt_tokens", pa.int32(), "tokens", "length of the prompt")
_BLOCKS = column("blocks", pa.int32(), "forwards", "target forwards the text took part in")
_PROPOSED = column("proposed", pa.int32(), "tokens", "draft tokens proposed")
_VERIFIED = (
    column("accepted", pa.int32(), "tokens", "draft tokens kept"),
    column("penalised", pa.int32(), "tokens", "draft tokens refused by the gate"),
)


def _top(model: str, what: str, kind: pa.DataType, unit: str) -> pa.Field:
    return column(
        f"{model}_top_{what}s",
        pa.list_(kind),
        unit,
        f"the {TOP} most probable tokens of the {model} at this position, best first: their {what}s"
        ", from the distribution that the signals are taken from; tokens of probability 0 are left "
        "out",
    )


TOKENS = pa.schema(
    [
        _RUN,
        _SAMPLE,
        _REQUEST,
        _STEP,
        column(
            "position",
            pa.int32(),
            "tokens",
            "index in the text, prompt included; a replacement token stands where the refused one "
            "stood",
        ),
        column(
            "draft_token",
            pa.int32(),
            "token id",
            "the drafted token here; of a replacement the refused one; null at a bonus position",
        ),
        column(
            "draft_prob",
            pa.float32(),
            "probability",
            "the draft's probability of `token` when it was drawn; null where the draft was not "
            "evaluated",
        ),
        column(
            "target_prob",
            pa.float32(),
            "probability",
            "the target's probability of `token`, after every processor",
        ),
        column(
            "accept_prob",
            pa.float32(),
            "probability",
            "the rule's probability of keeping the drafted token; null for replacement and bonus",
        ),
        column(
            "uniform",
            pa.float32(),
            "number in [0, 1)",
            "the number of the acceptance test: with independent noise the token is kept if it is "
            "below accept_prob; null for replacement and bonus",
        ),
        column("draft_entropy", pa.float32(), "nats", "entropy of the draft's distribution"),
        column("target_entropy", pa.float32(), "nats", "entropy of the target's distribution"),
        column(
            "overlap",
            pa.float32(),
            "share",
            "share of the top_n most probable tokens that draft and target have in common",
        ),
        column(
            "gate",
            pa.float32(),
            "probability",
            "probability that the rule's gate is open here (0 or 1 but for random refusal); null "
            "for a rule without gate",
        ),
        column(
            "outcome",
            _NAME,
            "name",
            "accepted: kept; rejected: failed the acceptance test; penalised: refused by the gate; "
            "discarded: drafted but dropped behind a refusal or behind the end of the text; "
            "replacement: drawn for a refused token; bonus: drawn after a whole block was kept",
        ),
        column("token", pa.int32(), "token id", "the token this row is about"),
        _TEXT,
        _top("draft", "token", pa.int32(), "token ids"),
        _top("draft", "prob", pa.float32(), "probabilities"),
        _top("target", "token", pa.int32(), "token ids"),
        _top("target", "prob", pa.float32(), "probabilities"),
    ]
)

STEPS = pa.schema(
    [
        _RUN,
        _STEP,
        column("batch", pa.int32(), "texts", "texts that took part"),
        _PROPOSED,
        column("examined", pa.int32(), "tokens", "positions up to and including the first refusal"),
        *_VERIFIED,
        column("emitted", pa.int32(), "tokens", "tokens that the texts gained"),
        *(
            column(f"{part}_ms", pa.float64(), "ms", f"wall time of {what}")
            for part, what in _TIMED.items()
        ),
    ]
)

SAMPLES = pa.schema(
    [
        _RUN,
        _SAMPLE,
        _REQUEST,
        column("task", pa.string(), "name", "the task the prompt is from, or null"),
        column("item", pa.string(), "name", "the task's item, or null"),
        column("prompt", pa.string(), "text", "the prompt as the models saw it"),
        _DECODED,
        _ANSWER,
        column("correct", pa.bool_(), "yes or no", "whether the answer is right, or null"),
        column(
            "finish_reason",
            _NAME,
            "name",
            "eos: an end-of-sequence token came; stop: a stop string or criterion; length: "
            "max_new_tokens",
        ),
        _PROMPT_TOKENS,
        column("draft_tokens", pa.int32(), "tokens", "tokens of the text that were drafted"),
        column(
            "target_tokens",
            pa.int32(),
            "tokens",
            "tokens of the text that were drawn at the target: replacement and bonus tokens",
        ),
        _BLOCKS,
        column(
            "seconds",
            pa.float64(),
            "s",
            "wall time of the steps the text took part in, shared with the rest of the batch",
        ),
    ]
)

VOCABULARY = pa.schema(
    [
        column("token", pa.int32(), "token id", "a token named anywhere in the tokens table"),
        _TEXT,
    ]
)

_CELL = (
    column("system", _NAME, "name", "the rule with its fields and settings, as named in run.json"),
    column("task", _NAME, "name", "the task, as named in run.json"),
    column(
        "seed", pa.int32(), "number", "decides, with the item's index, all randomness of a text"
    ),
)
_ITEM = (
    column("item", pa.string(), "name", "the problem's id within its task"),
    column("index", pa.int32(), "index", "the problem's place in its task"),
)

_GRADED = pa.schema(
    [
        *_CELL,
        *_ITEM,
        _DECODED,
        column(
            "token_ids",
            pa.list_(pa.int32()),
            "token ids",
            "the decoded tokens; null from an endpoint, which tells no tokens",
        ),
        _ANSWER,
        column("correct", pa.bool_(), "yes or no", "whether the answer is right"),
        column(
            "failure",
            pa.string(),
            "text",
            "why decoding or grading failed (counted as wrong), or null",
        ),
        column(
            "finish_reason", _NAME, "name", "eos, stop, length or error; an endpoint's own word"
        ),
        _PROMPT_TOKENS,
        column("new_tokens", pa.int32(), "tokens", "length of the text"),
        _BLOCKS,
        _PROPOSED,
        column("examined", pa.int32(), "tokens", "draft positions up to the first refusal of each"),
        *_VERIFIED,
        column("gate_open", pa.float64(), "tokens", "sum of the gate over examined positions"),
        *(
            column(
                f"over_{signal}",
                pa.int32(),
                "tokens",
                f"examined positions that meet the {signal.replace('_', '-')} condition; null for "
                "a rule without it",
            )
            for signal in ("draft_entropy", "target_entropy", "overlap")
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

_CHUNKS = pa.schema(
    [
        *_CELL,
        column("first", pa.int32(), "index", "index of the chunk's first item"),
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

_ITEMS = pa.schema(
    [
        _CELL[1],
        *_ITEM,
        column(
            "prompt", pa.string(), "text", "what was asked, without system message and template"
        ),
        column("answers", pa.list_(pa.string()), "texts", "answers that count as right"),
    ]
)

_COUNTS = {
    "tokens": "new tokens",
    "forwards": "target forwards, each for the whole batch",
    "blocks": "target forwards, counted for each text",
    "proposed": "draft tokens proposed",
    "examined": "draft positions up to the first refusal of each block",
    "accepted": "draft tokens accepted",
    "penalised": "draft tokens refused by the gate",
    "full": "steps with every row of the batch in use",
    "full_proposed": "longest draft of each of those steps, summed",
}

_TIMINGS = pa.schema(
    [
        column("round", pa.int32(), "index", "the repetition"),
        column("batch", pa.int32(), "texts", "texts decoded at once"),
        column("context", pa.int32(), "tokens", "length of the prompts; null: as they are"),
        column("system", pa.string(), "name", "the way to decode, with its gamma"),
        column("gamma", pa.int32(), "tokens", "draft tokens asked for; 0 where not fixed"),
        column("seconds", pa.float64(), "s", "wall time of the whole run, prompts included"),
        column("cpu_seconds", pa.float64(), "s", "processor time of all threads"),
        *(column(name, pa.int64(), "count", about) for name, about in _COUNTS.items()),
        column(
            "operations", pa.float64(), "count", "torch operations of a step; null: not counted"
        ),
        column("full_draft", pa.float64(), "s", "wall time of drafting in full steps"),
        column("full_target", pa.float64(), "s", "wall time of the target in full steps"),
        *(
            column(f"{part}_s", pa.float64(), "s", f"wall time of the engine's part {part}")
            for part in PARTS
        ),
    ]
)

# In the order of writing: a chunk of an evaluation counts as finished once its samples are there.
TABLES: dict[Kind, dict[str, pa.Schema]] = {
    "trace": {"vocabulary": VOCABULARY, "tokens": TOKENS, "steps": STEPS, "samples": SAMPLES},
    "evaluation": {
        "items": _ITEMS,
        "vocabulary": VOCABULARY,
        "tokens": pa.schema([*_CELL, *TOKENS]),
        "chunks": _CHUNKS,
        "samples": _GRADED,
    },
    "bench": {"timings": _TIMINGS},
}
