"""The page's data of a trace.

run           run.json
summary       counts and rates, see `easd.runs.summary`
texts         one for each text: its row of the samples table, and its `tokens` by column
texts_in_run  number of texts, shown or not
vocabulary    pairs of token id and text, for all top tokens of these texts
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from easd.errors import TraceError
from easd.runs import Run, summary
from easd.runs.schema import TOKENS

MOST_ROWS = 50_000  # makes a page of about 15 MB

_KEYS = ("run", "sample", "request")
_NAMED = ("draft_top_tokens", "target_top_tokens", "law_top_tokens")


def run_data(trace: Run, sample: int | None) -> dict[str, Any]:
    """A trace with one text, or with the first texts of `MOST_ROWS` tokens.

    Raises:
        TraceError: The trace holds no text, or not that one.
    """
    rows = trace.tokens["sample"].to_numpy()
    sizes = np.bincount(rows) if len(rows) else np.zeros(0, dtype=int)
    if sample is not None and not 0 <= sample < len(sizes):
        has = f"it has 0 to {len(sizes) - 1}" if len(sizes) else "it has none yet"
        raise TraceError(f"the trace holds no text {sample}; {has}")
    if not len(sizes):
        raise TraceError(f"the trace in {str(trace.folder)!r} holds no text yet; decode first")
    fitting = max(int(np.searchsorted(np.cumsum(sizes), MOST_ROWS, side="right")), 1)
    shown = range(fitting) if sample is None else [sample]
    kept = trace.tokens.filter(pc.field("sample").isin(list(shown)))
    ended = {row["sample"]: row for row in trace.samples.to_pylist()}
    return {
        "run": trace.run,
        "summary": summary(trace),
        "texts": [_text(kept, number, ended.get(number)) for number in shown],
        "texts_in_run": len(sizes),
        "vocabulary": _vocabulary(trace, kept),
    }


def _text(tokens: pa.Table, sample: int, ended: dict[str, Any] | None) -> dict[str, Any]:
    rows = tokens.filter(pc.field("sample") == sample)
    unfinished = dict.fromkeys(("prompt", "text", "finish_reason", "answer", "correct"))
    return {
        **(ended or {**unfinished, "sample": sample, "request": rows["request"][0].as_py()}),
        "tokens": {name: _plain(rows[name]) for name in TOKENS.names if name not in _KEYS},
    }


def _plain(column: pa.ChunkedArray) -> list[Any]:
    """Values for JSON; numbers in single precision keep all their digits."""
    kind = column.type
    while pa.types.is_list(kind):
        kind = kind.value_type
    values = column.to_pylist()
    return _short(values) if pa.types.is_float32(kind) else values


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(each) for each in value]
    return None if value is None else float(f"{value:.9g}")


def _vocabulary(trace: Run, tokens: pa.Table) -> list[tuple[int, str]]:
    named = {token for name in _NAMED for row in tokens[name].to_pylist() for token in row}
    rows = trace.vocabulary.to_pylist()
    return [(row["token"], row["text"]) for row in rows if row["token"] in named]
