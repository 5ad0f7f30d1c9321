"""The layout of draft tokens in vLLM's V2 model runner, and how rules are applied to it.

V2 keeps the draft's logits before the temperature, of all requests in one tensor [slots, K, V'],
and the target's logits of a step's rows one after another, [N + B, V]: for each row those of its
draft tokens, then those of its bonus token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.integrations.vllm.batch import Batch
from easd.integrations.vllm.gate import Gates, ask, rows_of
from easd.integrations.vllm.laws import log_laws

CERTAIN = 6e4
"""A draft logit with a softmax of exactly 1 at any temperature below 100. It is finite in half
precision, and in float32 after division by vLLM's lowest temperature, 0.01."""

LOGITS_AT_ONCE = 2**26
"""Maximum number of logits that rules read at once, to bound their memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """The N draft tokens of a step's B rows, and the places of their logits."""

    row: Tensor  # int64 [N], in the batch
    position: Tensor  # int64 [N], in the row's draft
    slot: Tensor  # int64 [N], with `position` the place in the draft's logits
    at: Tensor  # int64 [N], in the target's logits
    token: Tensor  # int64 [N]; -1 is a placeholder

    @classmethod
    def of(cls, tokens: Tensor, cu_num_logits: Tensor, idx_mapping: Tensor) -> Drafted:
        """Reads the layout of a step.

        Args:
            tokens: int [N + B], for each row its last token, then its draft tokens.
            cu_num_logits: int [B + 1], where each row begins in `tokens`.
            idx_mapping: int [B], the rows' slots.
        """
        total = tokens.shape[0] - idx_mapping.shape[0]
        row, position = rows_of(cu_num_logits.diff().long() - 1, total)
        at = torch.arange(total, device=row.device) + row  # Each row before has a bonus position.
        return cls(
            row=row,
            position=position,
            slot=idx_mapping.long()[row],
            at=at,
            token=tokens.long()[at + 1],
        )


def ask_all(
    batch: Batch, drafted: Drafted, draft_logits: Tensor, target_logits: Tensor, temperature: Tensor
) -> Gates:
    """Evaluates the gate at each draft token, some tokens at a time.

    Args:
        draft_logits: [slots, K, V'], before the temperature.
        target_logits: [N + B, V], after all processors and the temperature.
        temperature: float [slots]; greedy requests have 0 and are evaluated at 1.
    """
    rule_of = batch.rule_of[drafted.row]
    parts = []
    for part, draft, target in in_parts(drafted, draft_logits, target_logits, temperature):
        parts.append(ask(batch.published, rule_of[part], drafted.token[part], draft, target))
    return Gates.cat(parts)


def draw_from_laws(
    batch: Batch,
    drafted: Drafted,
    draft_logits: Tensor,
    target_logits: Tensor,
    temperature: Tensor,
    any_greedy: bool,
) -> tuple[Tensor, Gates]:
    """Returns a copy of the target's logits with the logarithm of each row's law in its place.

    Arguments are those of `ask_all`. vLLM takes log-probabilities from the unchanged original.
    """
    vocab = min(draft_logits.shape[-1], target_logits.shape[-1])
    rule_of = batch.rule_of[drafted.row].masked_fill(drafted.token < 0, -1)
    greedy = temperature[drafted.slot] == 0 if any_greedy else None
    logits, parts = target_logits.clone(), []
    for part, draft, target in in_parts(drafted, draft_logits, target_logits, temperature):
        drawn, gates = log_laws(
            batch.laws,
            len(batch.published),
            rule_of[part],
            draft,
            target,
            None if greedy is None else greedy[part],
        )
        logits[drafted.at[part], :vocab] = drawn
        parts.append(gates)
    return logits, Gates.cat(parts)


def in_parts(
    drafted: Drafted, draft_logits: Tensor, target_logits: Tensor, temperature: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields slices of the draft tokens with the draft's probabilities and the target's logits."""
    vocab = min(draft_logits.shape[-1], target_logits.shape[-1])  # as in vLLM's kernels
    temperature = temperature[drafted.slot]
    temperature = torch.where(temperature == 0, 1.0, temperature)[:, None]
    at_once = max(1, LOGITS_AT_ONCE // vocab)
    for start in range(0, drafted.row.shape[0], at_once):
        part = slice(start, start + at_once)
        draft = draft_logits[drafted.slot[part], drafted.position[part], :vocab].float()
        yield (
            part,
            draft.div_(temperature[part]).softmax(-1),
            target_logits[drafted.at[part], :vocab],
        )


@contextmanager
def penalised(
    gate: Tensor, drafted: Drafted, draft_logits: Tensor, target_logits: Tensor
) -> Iterator[None]:
    """Changes the logits where `gate` bool [N] is open, so that the stock kernels penalise there.

    The kernels refuse a token with target probability 0. With a draft that is certain of it, the
    residual distribution is the target without the token. The target's logits are restored
    afterwards, since vLLM takes log-probabilities from them; the next draft overwrites the draft's.
    """
    token = drafted.token.clamp_min(0)
    place = (drafted.slot, drafted.position, token)
    draft_logits[place] = draft_logits[place].masked_fill(gate, CERTAIN)
    kept = target_logits[drafted.at, token]
    target_logits[drafted.at, token] = kept.masked_fill(gate, float("-inf"))
    yield
    target_logits[drafted.at, token] = kept
