"""Write a trace while the engine runs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from easd.config import RunConfig
from easd.core.rules.entropy_aware import gate_signals
from easd.core.signals import top_tokens
from easd.core.types import Rule
from easd.engine.loop import StepRecord
from easd.engine.models import Pair
from easd.engine.request import Row
from easd.errors import TraceError
from easd.trace.schema import FORMAT, OUTCOMES, PARTS, SCHEMAS, TOP
from easd.trace.tally import Tally, outcomes

_Columns = dict[str, np.ndarray]
Grade = Callable[[int, str], Mapping[str, object]]

_FLUSH_SECONDS = 5.0
_FLUSH_SHARE = 0.02  # Of the run so far: long runs write fewer, larger parts.
_FLUSH_STEPS = 4096

_CODES = {name: code for code, name in enumerate(OUTCOMES)}
_SIGNALS = ("draft_entropy", "target_entropy", "shared_top", "gate")
_FLOATS = ("draft_prob", "target_prob", "accept_prob", "uniform", *_SIGNALS)


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
        self._rule = config.settings.rule
        self._top_n = getattr(self._rule, "top_n", TOP)
        self._id = uuid4().hex[:12]
        self._samples: dict[int, int] = {}
        self._tallies: dict[int, Tally] = {}
        self._texts: dict[int, str] = {}
        self._anchor = pair.tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._steps = 0
        self._part = 0
        self._pending: list[_Rows] = []
        self._begin = self._flushed = monotonic()
        self._run = {
            "format": FORMAT,
            "run": self._id,
            "status": "running",
            "started": _now(),
            "ended": None,
            "config": config.to_dict(),
            "models": {"pair": pair.name, "dtype": str(pair.target.dtype).removeprefix("torch.")},
            "signals": _signals_note(self._rule, config.settings.temperature, self._top_n),
            "versions": _versions(),
            "hardware": _hardware(pair.target.device),
            "git": git_state(),
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
            self._run |= {"status": status, "ended": _now()}
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
        now = monotonic()
        wait = max(_FLUSH_SECONDS, _FLUSH_SHARE * (now - self._begin))
        if now - self._flushed >= wait or len(self._pending) >= _FLUSH_STEPS:
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

    def _token_rows(self, record: StepRecord, names: list[list[str]]) -> _Columns:
        """Columns of the step's rows: each text's drafted positions, then the token at its end."""
        floats, ids = _to_host(record, self._top_n)
        draft_tokens = record.step.draft_tokens.shape[1]
        count = np.array([len(row) for row in names])
        drafted = record.step.num_draft_tokens.cpu().numpy()
        # Row b's j-th entry is drafted position j, and the one after the last stands at K.
        place = np.repeat(np.arange(len(names)), count)
        entry = np.concatenate([np.arange(c) for c in count])
        ending = entry >= drafted[place]
        column = np.where(ending, draft_tokens, entry)
        found = {name: values[place, column] for name, values in ids.items()}
        found |= {name: values[place, column] for name, values in floats.items()}
        numbers = np.array([row.request.number for row in record.rows])
        samples = [self._samples.setdefault(n, len(self._samples)) for n in numbers.tolist()]
        starts = np.array(record.starts)
        return found | {
            "sample": np.array(samples)[place],
            "request": numbers[place],
            "step": np.full(len(place), self._steps),
            "position": starts[place] + found.pop("offset"),
            "outcome": np.array([_CODES[name] for row in names for name in row], dtype=np.int32),
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
        new = self._new_texts(columns)
        known = self._texts | new
        tables = {
            "vocabulary": pa.table([list(new), list(new.values())], SCHEMAS["vocabulary"]),
            "tokens": _tokens_table(columns, known, run=self._id, top_n=self._top_n),
            "steps": self._table("steps", [rows.step for rows in self._pending]),
            "samples": self._table("samples", [s for rows in self._pending for s in rows.samples]),
        }
        for name, table in tables.items():
            if table.num_rows:
                path = self.folder / name / f"part-{self._part:05d}.parquet"
                _write(path, lambda to, table=table: pq.write_table(table, to, compression="zstd"))
        # Not before all are written: what was cut short is then written again, to the same files.
        self._pending = []
        self._part += 1
        self._texts = known

    def _table(self, name: str, rows: list[dict[str, Any]]) -> pa.Table:
        rows = [{"run": self._id, **row} for row in rows]
        return pa.Table.from_pylist(rows, schema=SCHEMAS[name])

    def _token_columns(self) -> _Columns:
        chunks = [rows.tokens for rows in self._pending]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _new_texts(self, columns: _Columns) -> dict[int, str]:
        """Texts of the tokens that no part has named yet."""
        named = [columns[n].ravel() for n in ("token", "draft_top_tokens", "target_top_tokens")]
        tokens = np.unique(np.concatenate(named)).tolist()
        return {token: self._text_of(token) for token in tokens if token not in self._texts}

    def _text_of(self, token: int) -> str:
        """The token as it continues a text, with the space some tokenizers put before it."""
        before, both, alone = (
            self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            for ids in (self._anchor, [*self._anchor, token], [token])
        )
        return both.removeprefix(before) if both.startswith(before) else alone

    def _save_run(self) -> None:
        text = json.dumps(self._run, indent=2, ensure_ascii=False) + "\n"
        _write(self.folder / "run.json", lambda to: to.write_text(text, encoding="utf-8"))


class _Rows:
    """What one step adds to the tables."""

    __slots__ = ("samples", "step", "tokens")

    def __init__(
        self, *, tokens: _Columns, step: dict[str, Any], samples: list[dict[str, Any]]
    ) -> None:
        self.tokens = tokens
        self.step = step
        self.samples = samples


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


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from and whether it has changes, if it is one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _to_host(record: StepRecord, top_n: int) -> tuple[_Columns, _Columns]:
    """Everything per position, in two transfers: name -> [B, K+1] or [B, K+1, TOP].

    Entry K is the token drawn at the block's end, at the position where it was drawn.
    """
    step, decision = record.step, record.decision
    length = step.draft_tokens.shape[1]
    ending = decision.num_accepted[:, None]
    places = torch.arange(length, device=ending.device).expand(ending.shape[0], -1)
    at = torch.cat([places, ending], 1)  # [B, K+1]
    token = torch.cat([step.draft_tokens, decision.next_token[:, None]], 1)
    bonus = at >= step.num_draft_tokens[:, None]
    draft_token = torch.cat([step.draft_tokens, torch.zeros_like(ending)], 1).gather(1, at)

    raw = step.raw_target_probs is not None
    draft_seen = step.raw_draft_probs if raw else step.draft_probs
    target_seen = step.raw_target_probs if raw else step.target_probs
    assert draft_seen is not None
    assert target_seen is not None
    signals = dict(decision.judgement.signals)
    if "shared_top" not in signals:
        signals |= gate_signals(draft_seen, target_seen, top_n)

    def of_token(probs: Tensor) -> Tensor:
        rows = torch.arange(at.shape[0], device=at.device)[:, None]
        return probs[rows, at, token]

    def with_end(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, 1), value=float("nan"))

    unknown = torch.full_like(at, float("nan"), dtype=torch.float32)
    floats = {
        "draft_prob": of_token(step.draft_probs),
        "target_prob": of_token(step.target_probs),
        "accept_prob": with_end(decision.judgement.accept_prob),
        "uniform": with_end(record.noise.accept(length)),
        **{name: signals[name].gather(1, at) if name in signals else unknown for name in _SIGNALS},
    }
    # Where the draft said nothing there is nothing to report.
    silent = bonus & (step.draft_probs.amax(-1).gather(1, at) <= 0)
    for name in ("draft_prob", "draft_entropy", "shared_top"):
        floats[name] = floats[name].float().masked_fill(silent, float("nan"))
    ids = {"token": token, "draft_token": draft_token.masked_fill(bonus, -1), "offset": at}

    probs, tokens = [], []
    for seen in (draft_seen, target_seen):
        values, best = top_tokens(seen, TOP)
        index = at[..., None].expand(-1, -1, values.shape[-1])
        probs.append(values.gather(1, index))
        tokens.append(best.gather(1, index))
    float_table = torch.cat([torch.stack([floats[n].float() for n in _FLOATS], -1), *probs], -1)
    id_table = torch.cat([torch.stack(list(ids.values()), -1), *tokens], -1)
    float_host, id_host = float_table.cpu().float().numpy(), id_table.cpu().numpy()

    host_floats = {name: float_host[..., i] for i, name in enumerate(_FLOATS)}
    host_ids = {name: id_host[..., i] for i, name in enumerate(ids)}
    width = probs[0].shape[-1]
    for i, model in enumerate(("draft", "target")):
        first, last = i * width, (i + 1) * width
        host_floats[f"{model}_top_probs"] = float_host[..., len(_FLOATS) :][..., first:last]
        host_ids[f"{model}_top_tokens"] = id_host[..., len(ids) :][..., first:last]
    return host_floats, host_ids


def _tokens_table(found: _Columns, texts: dict[int, str], *, run: str, top_n: int) -> pa.Table:
    schema = SCHEMAS["tokens"]
    size = len(found["step"])
    columns: dict[str, pa.Array] = {
        "run": pa.DictionaryArray.from_arrays(np.zeros(size, dtype=np.int32), [run]),
        "outcome": pa.DictionaryArray.from_arrays(found["outcome"], list(OUTCOMES)),
        "draft_token": pa.array(found["draft_token"], mask=found["draft_token"] < 0),
        "text": pa.array([texts[token] for token in found["token"].tolist()]),
        "overlap": _nullable(found["shared_top"] / top_n),
    }
    for model in ("draft", "target"):
        probs = found[f"{model}_top_probs"]
        kept = probs > 0
        offsets = np.concatenate([[0], kept.sum(1).cumsum()]).astype(np.int32)
        for what, values in (("tokens", found[f"{model}_top_tokens"]), ("probs", probs)):
            name = f"{model}_top_{what}"
            flat = pa.array(values[kept]).cast(schema.field(name).type.value_type)
            columns[name] = pa.ListArray.from_arrays(offsets, flat)
    for name in schema.names:
        if name not in columns:
            columns[name] = _nullable(found[name])
    return pa.table([columns[f.name].cast(f.type) for f in schema], schema)


def _nullable(values: np.ndarray) -> pa.Array:
    """NaN stands for null in float columns."""
    return pa.array(values, from_pandas=True)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside the path and renames, so that a reader sees a whole file or none."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(exist_ok=True)
        write(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        raise TraceError(
            f"cannot write {str(path)!r} ({error.strerror or error}); what was written before "
            "stays readable"
        ) from None


def _signals_note(rule: Rule, temperature: float, top_n: int) -> dict[str, Any]:
    raw = rule.needs_raw == "always" or (rule.needs_raw == "greedy" and temperature == 0)
    return {
        "from": "rule" if hasattr(rule, "top_n") else "trace",
        "distribution": "raw" if raw else "sampling",
        "top_n": top_n,
    }


def _versions() -> dict[str, str]:
    packages = ("easd", "torch", "transformers", "pyarrow", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _hardware(device: torch.device) -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
