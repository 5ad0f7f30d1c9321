"""Records what the engine decodes, token by token, in a run folder."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from easd.engine.batch import StepRecord
from easd.engine.pair import Pair, provenance
from easd.engine.record import (
    Columns,
    joined,
    outcomes,
    signals_of,
    token_columns,
    tokens_table,
    top_n_of,
)
from easd.engine.request import Row
from easd.engine.settings import Settings
from easd.errors import TraceError
from easd.runs.files import now, write_json
from easd.runs.parts import Parts
from easd.runs.schema import PARTS, STEPS, TABLES, VOCABULARY
from easd.runs.seal import seal_json
from easd.runs.tally import Tally
from easd.runs.texts import TokenTexts
from easd.runs.writer import describe

_FLUSH_SECONDS = 5.0
_FLUSH_SHARE = 0.02  # of the run so far: long runs write fewer, larger parts
_FLUSH_STEPS = 4096


class Config(Protocol):
    """The part of `easd.config.RunConfig` that a trace needs."""

    @property
    def settings(self) -> Settings: ...
    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The rows that one step adds to the tables."""

    tokens: Columns
    step: dict[str, Any]
    samples: list[dict[str, Any]]


class TraceWriter:
    """Writes a trace from step records; a context manager that closes the run.

    Args:
        folder: new or empty.
        pair: the models that decode.
        config: the run's `easd.config.RunConfig`.

    Raises:
        TraceError: The folder cannot be written, or already holds something.
    """

    def __init__(self, folder: str | Path, pair: Pair, config: Config) -> None:
        self.folder = claim_folder(folder)
        self._tokenizer: Any = pair.tokenizer
        self._top_n = top_n_of(config.settings.rule)
        self._samples: dict[int, int] = {}
        self._seconds: dict[int, float] = defaultdict(float)
        self._texts = TokenTexts(pair.tokenizer)
        self._written: set[int] = set()  # tokens in the vocabulary on disk
        self._steps = 0
        self._part = 0
        self._pending: list[_Rows] = []
        self._begin = self._flushed = monotonic()
        self._run = describe(
            "trace",
            config.to_dict(),
            signals=signals_of(config.settings),
            **provenance(pair),
        )
        self._id: str = self._run["run"]
        self._parts = Parts(self.folder, "trace", self._id)
        self._save_run()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        status = "finished"
        if kind is not None:
            status = "failed" if issubclass(kind, Exception) else "interrupted"
            self._run["error"] = str(error) or kind.__name__
        if status == "failed" and not self._steps:
            # Refused before the first step: leaves the folder free for the next attempt.
            (self.folder / "run.json").unlink()
            return
        try:
            self._flush()
        except TraceError:
            status = "failed"
            raise
        finally:
            parts = self._parts.names(self._parts.marker)
            self._run |= {"status": status, "ended": now(), "parts": parts}
            self._save_run()

    def add(self, record: StepRecord) -> None:
        """Adds one step; writes a part if the last one is old enough."""
        names = outcomes(record)
        for row in record.rows:
            self._seconds[row.request.number] += sum(record.seconds.values())
        # One append, so that an interrupt keeps or drops a step as a whole.
        self._pending.append(
            _Rows(
                tokens=self._token_columns(record, names),
                step=self._step_row(record, names),
                samples=[self._sample_row(row) for row in record.rows if row.finished],
            )
        )
        self._steps += 1
        moment = monotonic()
        wait = max(_FLUSH_SECONDS, _FLUSH_SHARE * (moment - self._begin))
        if moment - self._flushed >= wait or len(self._pending) >= _FLUSH_STEPS:
            self._flush()

    def _token_columns(self, record: StepRecord, names: list[list[str]]) -> Columns:
        found = token_columns(record, names, top_n=self._top_n)
        requests = found["request"].tolist()
        samples = [self._samples.setdefault(number, len(self._samples)) for number in requests]
        return found | {
            "sample": np.array(samples),
            "step": np.full(len(samples), self._steps),
        }

    def _step_row(self, record: StepRecord, names: list[list[str]]) -> dict[str, Any]:
        tally = Tally.of_outcomes(Counter(name for row in names for name in row))
        return {
            "step": self._steps,
            "batch": len(record.rows),
            "proposed": tally.proposed,
            "examined": tally.examined,
            "accepted": tally.accepted,
            "penalised": tally.penalised,
            "emitted": tally.tokens,
            **{f"{part}_ms": 1000 * record.seconds.get(part, 0.0) for part in PARTS},
        }

    def _sample_row(self, row: Row) -> dict[str, Any]:
        number = row.request.number
        return {
            "sample": self._samples[number],
            "prompt": self._tokenizer.decode(list(row.request.prompt)),
            "text": self._tokenizer.decode(row.new_ids, skip_special_tokens=True),
            **sample_counts(row),
            "seconds": self._seconds.pop(number),
        }

    def _flush(self) -> None:
        self._flushed = monotonic()
        if not self._pending:
            return
        columns = joined([rows.tokens for rows in self._pending])
        texts = self._texts.of(columns)
        new = {token: text for token, text in texts.items() if token not in self._written}
        samples = [sample for rows in self._pending for sample in rows.samples]
        tables = {
            "vocabulary": pa.table([list(new), list(new.values())], VOCABULARY),
            "tokens": tokens_table(columns, texts, run=self._id, top_n=self._top_n),
            "steps": self._table(STEPS, [rows.step for rows in self._pending]),
            "samples": self._table(TABLES["trace"]["samples"], samples),
        }
        self._parts.write(f"part-{self._part:05d}", tables)
        # Only after all are written, so that an interrupted part is rewritten to the same files.
        self._pending = []
        self._part += 1
        self._written |= new.keys()

    def _table(self, schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
        return pa.Table.from_pylist([{"run": self._id, **row} for row in rows], schema=schema)

    def _save_run(self) -> None:
        write_json(self.folder / "run.json", seal_json(self._run))


def sample_counts(row: Row) -> dict[str, Any]:
    """A text's columns of the samples table, except the text and its time."""
    return {
        "request": row.request.number,
        "finish_reason": row.finished,
        "prompt_tokens": len(row.request.prompt),
        "draft_tokens": row.counts.accepted,
        "target_tokens": len(row.new_ids) - row.counts.accepted,
        "blocks": row.counts.blocks,
    }


def claim_folder(folder: str | Path) -> Path:
    """Creates a folder for a trace; refuses one that is not empty or cannot be written."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise TraceError(
            f"cannot write a trace to {str(folder)!r} ({error.strerror}); name another folder"
        ) from None
    if taken:
        raise TraceError(
            f"{str(folder)!r} is not empty; a trace needs a folder of its own, so name a new one"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise TraceError(
            f"cannot write a trace to {str(folder)!r} (no permission); name another folder"
        )
    return folder
