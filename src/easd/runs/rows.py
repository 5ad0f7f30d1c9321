"""From step records to rows of the tokens table, on host arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from easd.core.rules.gated import gate_signals
from easd.core.signals import top_tokens
from easd.engine.engine import StepRecord
from easd.runs.schema import OUTCOMES, SCHEMAS, TOP

Columns = dict[str, np.ndarray]

_CODES = {name: code for code, name in enumerate(OUTCOMES)}
_SIGNALS = ("draft_entropy", "target_entropy", "shared_top", "gate")
_FLOATS = ("draft_prob", "target_prob", "accept_prob", "uniform", *_SIGNALS)


def token_rows(record: StepRecord, names: list[list[str]], *, top_n: int) -> Columns:
    """The rows of one step: each text's drafted positions, then the token at the block's end.

    Args:
        record: the step.
        names: its outcomes, as `easd.runs.tally.outcomes` gives them.
        top_n: how many top tokens the overlap counts where the rule has no signals of its own.
    """
    floats, ids = _to_host(record, top_n)
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
    return found | {
        "request": np.array([row.request.number for row in record.rows])[place],
        "position": np.array(record.starts)[place] + found.pop("offset"),
        "outcome": np.array([_CODES[name] for row in names for name in row], dtype=np.int32),
    }


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


def tokens_table(found: Columns, texts: dict[int, str], *, run: str, top_n: int) -> pa.Table:
    """The rows of several steps as a table; `texts` has the text of every token."""
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
