"""Step records on the host: each token's outcome, and counts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from easd.core.gate import ALL_CONDITIONS
from easd.core.rules import Rule
from easd.core.rules.gated import gate_signals
from easd.core.scope import Scoped
from easd.core.signals import top_tokens
from easd.engine.batch import StepRecord
from easd.engine.request import Row
from easd.engine.settings import Settings
from easd.runs.schema import OUTCOMES, PARTS, TOKENS, TOP
from easd.runs.tally import COUNTED, Tally

Columns = dict[str, np.ndarray]

_CODES = {name: code for code, name in enumerate(OUTCOMES)}
_SIGNALS = ("draft_entropy", "target_entropy", "shared_top", "gate")
_FLOATS = ("draft_prob", "target_prob", "law_prob", "accept_prob", "uniform", *_SIGNALS)


@dataclass(slots=True)
class Recorder:
    """Counts what the engine decodes, by text and in total.

    The engine counts each text's draft tokens; this adds the seconds and forwards of all steps and,
    for rules with a gate, the positions where it was open.

    Attributes:
        rule: the engine's.
        with_gate: whether to look at the gate, which costs a transfer from a GPU each step.
        with_tokens: whether to keep every token.
        rows: the texts by request number.
        seconds: wall time by part.
        target_steps, draft_steps: forwards, each for the whole batch.
    """

    rule: Rule
    with_gate: bool = True
    with_tokens: bool = False
    rows: dict[int, Row] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    target_steps: int = 0
    draft_steps: int = 0
    _gates: dict[int, np.ndarray] = field(default_factory=lambda: defaultdict(_no_gate))
    _tokens: list[Columns] = field(default_factory=list)

    def add(self, record: StepRecord) -> None:
        """Adds one step."""
        self.rows.update((row.request.number, row) for row in record.rows)
        for part, seconds in record.seconds.items():
            self.seconds[part] += seconds
        drafted = record.step.draft_tokens.shape[1]
        if self.with_gate and drafted and "gate" in record.decision.judgement.signals:
            self._add_gates(record)
        if self.with_tokens:
            self._add_tokens(record)
        self.target_steps += 1
        self.draft_steps += drafted + self.rule.draft_at_bonus if drafted else 0

    def of(self, number: int) -> Tally:
        """One text's counts, without seconds, which only the batch has."""
        row = self.rows[number]
        counts = {name: getattr(row.counts, name) for name in COUNTED}
        found = Tally(tokens=len(row.new_ids), **counts)
        if number in self._gates:
            gate, *met = self._gates[number].tolist()
            found.gate_open = gate
            if self.rule.gate is not None:
                found.conditions = dict(zip(ALL_CONDITIONS, map(round, met), strict=True))
        return found

    @property
    def total(self) -> Tally:
        """The counts and seconds of all texts."""
        total = Tally(seconds=dict(self.seconds))
        for number in self.rows:
            total += self.of(number)
        return total

    def token_columns(self) -> Columns | None:
        """All tokens by column, or None if none were kept."""
        return joined(self._tokens) if self._tokens else None

    def _add_gates(self, record: StepRecord) -> None:
        signals: Any = record.decision.judgement.signals
        proposed = record.step.num_draft_tokens.tolist()
        kept = [min(n, len(c)) for n, c in zip(proposed, record.committed, strict=True)]
        length = record.step.draft_tokens.shape[1]
        examined = torch.arange(length) < torch.tensor(kept)[:, None]
        seen = [signals["gate"].cpu()]
        if self.rule.gate is not None:
            met = self.rule.gate.met(signals)
            seen += [met[name].cpu().to(seen[0]) for name in ALL_CONDITIONS]
        values = torch.stack([each[:, :length] for each in seen], -1)
        sums = (values * examined[..., None]).sum(1).double().numpy()
        for row, total in zip(record.rows, sums, strict=True):
            self._gates[row.request.number][: total.size] += total

    def _add_tokens(self, record: StepRecord) -> None:
        found = token_columns(record, outcomes(record), top_n=top_n_of(self.rule))
        step = np.full(len(found["request"]), self.target_steps)
        self._tokens.append(found | {"step": step, "sample": found["request"]})


def _no_gate() -> np.ndarray:
    return np.zeros(1 + len(ALL_CONDITIONS))


def joined(chunks: list[Columns]) -> Columns:
    """The concatenated columns of several steps."""
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def outcomes(record: StepRecord) -> list[list[str]]:
    """The outcome of each row's draft tokens, then of the token at the block's end, if any."""
    decision = record.decision
    names = []
    for committed, accepted, drafted, penalised in zip(
        record.committed,
        decision.num_accepted.tolist(),
        record.step.num_draft_tokens.tolist(),
        decision.penalised.tolist(),
        strict=True,
    ):
        kept = min(accepted, len(committed))
        row = ["accepted"] * kept
        if len(committed) > accepted:  # No stop cut the block: a token was drawn at its end.
            if accepted < drafted:
                row.append("penalised" if penalised else "rejected")
            row += ["discarded"] * (drafted - len(row))
            row.append("replacement" if accepted < drafted else "bonus")
        else:
            row += ["discarded"] * (drafted - kept)
        names.append(row)
    return names


def token_columns(record: StepRecord, names: list[list[str]], *, top_n: int) -> Columns:
    """The tokens of one step: each text's drafted positions, then the token at the block's end.

    Args:
        record: the step.
        names: its `outcomes`.
        top_n: number of top tokens that the overlap counts if the rule has no such signal.
    """
    floats, ids = _to_host(record, top_n)
    draft_tokens = record.step.draft_tokens.shape[1]
    count = np.array([len(row) for row in names])
    drafted = record.step.num_draft_tokens.cpu().numpy()
    # Row b's j-th entry is drafted position j, and the one after the last is at index K.
    place = np.repeat(np.arange(len(names)), count)
    entry = np.concatenate([np.arange(c) for c in count])
    ending = entry >= drafted[place]
    column = np.where(ending, draft_tokens, entry)
    found = {name: values[place, column] for name, values in ids.items()}
    found |= {name: values[place, column] for name, values in floats.items()}
    found["draft_top_origins"] = _origins(record, place, found)
    return found | {
        "request": np.array([row.request.number for row in record.rows])[place],
        "position": np.array(record.starts)[place] + found.pop("offset"),
        "outcome": np.array([_CODES[name] for row in names for name in row], dtype=np.int32),
    }


def _origins(record: StepRecord, place: np.ndarray, found: Columns) -> np.ndarray:
    """For each row, the origins of the draft's top tokens, or None where one vocabulary serves."""
    origins = np.empty(len(place), dtype=object)
    if record.origins is None:
        return origins
    for i, (row, at) in enumerate(zip(place.tolist(), found["offset"].tolist(), strict=True)):
        of_row = record.origins[row]
        origin = of_row[at] if at < len(of_row) else None
        likely = found["draft_top_tokens"][i][found["draft_top_probs"][i] > 0]
        origins[i] = [] if origin is None else [origin.of(token) for token in likely.tolist()]
    return origins


def _to_host(record: StepRecord, top_n: int) -> tuple[Columns, Columns]:
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

    law = _own_law(record)
    unknown = torch.full_like(at, float("nan"), dtype=torch.float32)
    floats = {
        "draft_prob": of_token(step.draft_probs),
        "target_prob": of_token(step.target_probs),
        "law_prob": unknown if law is None else of_token(law),
        "accept_prob": with_end(decision.judgement.accept_prob),
        "uniform": with_end(record.noise.accept(length)),
        **{name: signals[name].gather(1, at) if name in signals else unknown for name in _SIGNALS},
    }
    unevaluated = bonus & (step.draft_probs.amax(-1).gather(1, at) <= 0)
    for name in ("draft_prob", "draft_entropy", "shared_top"):
        floats[name] = floats[name].float().masked_fill(unevaluated, float("nan"))
    ids = {"token": token, "draft_token": draft_token.masked_fill(bonus, -1), "offset": at}

    seen = {"draft": draft_seen, "target": target_seen}
    if law is not None:
        seen["law"] = law
    probs, tokens = [], []
    for each in seen.values():
        values, best = top_tokens(each, TOP)
        index = at[..., None].expand(-1, -1, values.shape[-1])
        probs.append(values.gather(1, index))
        tokens.append(best.gather(1, index))
    float_table = torch.cat([torch.stack([floats[n].float() for n in _FLOATS], -1), *probs], -1)
    id_table = torch.cat([torch.stack(list(ids.values()), -1), *tokens], -1)
    float_host, id_host = float_table.cpu().float().numpy(), id_table.cpu().numpy()

    host_floats = {name: float_host[..., i] for i, name in enumerate(_FLOATS)}
    host_ids = {name: id_host[..., i] for i, name in enumerate(ids)}
    width = probs[0].shape[-1]
    for i, name in enumerate(seen):
        first, last = i * width, (i + 1) * width
        host_floats[f"{name}_top_probs"] = float_host[..., len(_FLOATS) :][..., first:last]
        host_ids[f"{name}_top_tokens"] = id_host[..., len(ids) :][..., first:last]
    if law is None:
        host_floats["law_top_probs"] = np.zeros_like(host_floats["target_top_probs"])
        host_ids["law_top_tokens"] = host_ids["target_top_tokens"]
    return host_floats, host_ids


def _own_law(record: StepRecord) -> Tensor | None:
    """The rule's law [B, K+1, V], NaN where it is the target's distribution; None without one."""
    rule, step = record.rule, record.step
    if rule.lossless or not rule.has_law or rule.models != "both":
        return None
    scoped = rule if step.in_scope is None else Scoped(rule)
    law = scoped.law_given(step, record.decision.judgement.signals)
    if law is step.target_probs:
        return None
    same = (law == step.target_probs).all(-1, keepdim=True)
    return law.masked_fill(same, float("nan"))


def tokens_table(found: Columns, texts: dict[int, str], *, run: str, top_n: int) -> pa.Table:
    """The tokens of several steps as a table; `texts` maps every token to its text."""
    size = len(found["step"])
    columns: dict[str, pa.Array] = {
        "run": pa.DictionaryArray.from_arrays(np.zeros(size, dtype=np.int32), [run]),
        "outcome": pa.DictionaryArray.from_arrays(found["outcome"], list(OUTCOMES)),
        "draft_token": pa.array(found["draft_token"], mask=found["draft_token"] < 0),
        "text": pa.array([texts[token] for token in found["token"].tolist()]),
        "overlap": _nullable(found["shared_top"] / top_n),
    }
    origins = found["draft_top_origins"].tolist()
    for at, (what, kind) in enumerate((("origins", pa.string()), ("origin_shares", pa.float32()))):
        columns[f"draft_top_{what}"] = pa.array(
            [
                None if row is None else [[each[at] for each in token] for token in row]
                for row in origins
            ],
            pa.list_(pa.list_(kind)),
        )
    for model in ("draft", "target", "law"):
        probs = found[f"{model}_top_probs"]
        kept = probs > 0
        offsets = np.concatenate([[0], kept.sum(1).cumsum()]).astype(np.int32)
        for what, values in (("tokens", found[f"{model}_top_tokens"]), ("probs", probs)):
            name = f"{model}_top_{what}"
            flat = pa.array(values[kept]).cast(TOKENS.field(name).type.value_type)
            columns[name] = pa.ListArray.from_arrays(offsets, flat)
    for name in TOKENS.names:
        if name not in columns:
            columns[name] = _nullable(found[name])
    return pa.table([columns[f.name].cast(f.type) for f in TOKENS], TOKENS)


def _nullable(values: np.ndarray) -> pa.Array:
    # NaN becomes null in float columns.
    return pa.array(values, from_pandas=True)


def signals_of(settings: Settings) -> dict[str, Any]:
    """The source of the signals in the tokens table."""
    rule = settings.rule
    greedy = settings.temperature == 0
    raw = rule.needs_raw == "always" or (rule.needs_raw == "greedy" and greedy)
    return {
        "from": "trace" if rule.gate is None else "rule",
        "distribution": "raw" if raw else "sampling",
        "top_n": top_n_of(rule),
    }


def top_n_of(rule: Rule) -> int:
    """The number of top tokens that the overlap of the tokens table counts."""
    return TOP if rule.gate is None else rule.gate.top_n
