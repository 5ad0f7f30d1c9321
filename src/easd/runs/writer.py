"""Write a trace while the engine runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from easd.config import RunConfig
from easd.engine.engine import StepRecord
from easd.engine.pair import Pair
from easd.engine.request import Row
from easd.errors import TraceError
from easd.runs.files import now, replace_file, write_json
from easd.runs.provenance import provenance
from easd.runs.rows import Columns, token_rows, tokens_table
from easd.runs.schema import FORMAT, PARTS, SCHEMAS, TOP
from easd.runs.tally import Tally, outcomes
from easd.runs.texts import TokenTexts

Grade = Callable[[int, str], Mapping[str, object]]

_FLUSH_SECONDS = 5.0
_FLUSH_SHARE = 0.02  # Of the run so far: long runs write fewer, larger parts.
_FLUSH_STEPS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What one step adds to the tables."""

    tokens: Columns
    step: dict[str, Any]
    samples: list[dict[str, Any]]


class TraceWriter:
    """Feeds a trace folder with step records; leave it as a context manager to close the run.

    Args:
        folder: new or empty.
        pair: the models that decode.
        config: what the run was asked to do.
        grade: called with a finished request's number and text; returns any of the samples'
            `task`, `item`, `answer` and `correct`.

    Raises:
        TraceError: The folder cannot be written, or already holds something.
    """

    def __init__(
        self,
        folder: str | Path,
        pair: Pair,
        config: RunConfig,
        *,
        grade: Grade | None = None,
    ) -> None:
        self.folder = claim_folder(folder)
        self._tokenizer: Any = pair.tokenizer
        self._grade = grade
        self._top_n = getattr(config.settings.rule, "top_n", TOP)
        self._id = uuid4().hex[:12]
        self._samples: dict[int, int] = {}
        self._tallies: dict[int, Tally] = {}
        self._texts = TokenTexts(pair.tokenizer)
        self._written: set[int] = set()  # Tokens that the vocabulary on disk has.
        self._steps = 0
        self._part = 0
        self._pending: list[_Rows] = []
        self._begin = self._flushed = monotonic()
        self._run = {
            "format": FORMAT,
            "run": self._id,
            "status": "running",
            "started": now(),
            "ended": None,
            **provenance(pair, config),
        }
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
            # Refused before the first step: the folder stays free for the next try.
            (self.folder / "run.json").unlink()
            return
        try:
            self._flush()
        except TraceError:
            status = "failed"
            raise
        finally:
            self._run |= {"status": status, "ended": now()}
            self._save_run()

    def add(self, record: StepRecord) -> None:
        """Takes in one step; writes a part when the last one is old enough."""
        names = outcomes(record)
        # One append, so that an interrupt leaves a step whole or out.
        self._pending.append(
            _Rows(
                tokens=self._token_rows(record, names),
                step=self._step_row(record, names),
                samples=[self._sample_row(row) for row in self._tallied(record, names)],
            )
        )
        self._steps += 1
        moment = monotonic()
        wait = max(_FLUSH_SECONDS, _FLUSH_SHARE * (moment - self._begin))
        if moment - self._flushed >= wait or len(self._pending) >= _FLUSH_STEPS:
            self._flush()

    def _tallied(self, record: StepRecord, names: list[list[str]]) -> list[Row]:
        """Adds the step to its texts' counts; returns the texts that ended."""
        for row, row_names in zip(record.rows, names, strict=True):
            tally = self._tallies.setdefault(row.request.number, Tally())
            tally.outcomes.update(row_names)
            tally.blocks += 1
            for part, seconds in record.seconds.items():
                tally.seconds[part] += seconds
        return [row for row in record.rows if row.finished]

    def _token_rows(self, record: StepRecord, names: list[list[str]]) -> Columns:
        found = token_rows(record, names, top_n=self._top_n)
        requests = found["request"].tolist()
        samples = [self._samples.setdefault(number, len(self._samples)) for number in requests]
        return found | {
            "sample": np.array(samples),
            "step": np.full(len(samples), self._steps),
        }

    def _step_row(self, record: StepRecord, names: list[list[str]]) -> dict[str, Any]:
        tally = Tally()
        tally.outcomes.update(name for row in names for name in row)
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
        tally = self._tallies.pop(number)
        text = self._tokenizer.decode(row.new_ids, skip_special_tokens=True)
        return {
            "sample": self._samples[number],
            "request": number,
            "prompt": self._tokenizer.decode(list(row.request.prompt)),
            "text": text,
            "finish_reason": row.finished,
            "prompt_tokens": len(row.request.prompt),
            "draft_tokens": tally.accepted,
            "target_tokens": tally.tokens - tally.accepted,
            "blocks": tally.blocks,
            "seconds": sum(tally.seconds.values()),
            **(self._grade(number, text) if self._grade else {}),
        }

    def _flush(self) -> None:
        self._flushed = monotonic()
        if not self._pending:
            return
        columns = self._token_columns()
        texts = self._texts.of(columns)
        new = {token: text for token, text in texts.items() if token not in self._written}
        tables = {
            "vocabulary": pa.table([list(new), list(new.values())], SCHEMAS["vocabulary"]),
            "tokens": tokens_table(columns, texts, run=self._id, top_n=self._top_n),
            "steps": self._table("steps", [rows.step for rows in self._pending]),
            "samples": self._table("samples", [s for rows in self._pending for s in rows.samples]),
        }
        for name, table in tables.items():
            if table.num_rows:
                path = self.folder / name / f"part-{self._part:05d}.parquet"
                replace_file(
                    path, lambda to, table=table: pq.write_table(table, to, compression="zstd")
                )
        # Not before all are written: what was cut short is then written again, to the same files.
        self._pending = []
        self._part += 1
        self._written |= new.keys()

    def _table(self, name: str, rows: list[dict[str, Any]]) -> pa.Table:
        rows = [{"run": self._id, **row} for row in rows]
        return pa.Table.from_pylist(rows, schema=SCHEMAS[name])

    def _token_columns(self) -> Columns:
        chunks = [rows.tokens for rows in self._pending]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _save_run(self) -> None:
        write_json(self.folder / "run.json", self._run)


def claim_folder(folder: str | Path) -> Path:
    """Makes a folder for a trace, or takes an empty one.

    Raises:
        TraceError: It cannot be written, or is not empty.
    """
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
