"""From logits to the probabilities tokens are drawn from, the same way for draft and target.

Processors that look at the text so far are called for each row and position with that position's
own prefix; the warpers behind them (temperature, top-k, top-p, min-p) see all positions at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.engine.processing import TRUNCATING, Processing
from easd.engine.request import Row


@dataclass(frozen=True, slots=True)
class Distributions:
    """`probs` [B, T, V]; where asked for the `scores` behind them and `raw` probabilities.

    Raw ones are those at temperature 1 without truncation.
    """

    probs: Tensor
    scores: Tensor | None
    raw: Tensor | None


def distributions(
    logits: Tensor,
    rows: Sequence[Row],
    drafted: Tensor,
    counts: Sequence[int],
    *,
    want_raw: bool,
    want_scores: bool = False,
) -> Distributions:
    """Probabilities of B rows at T positions, in at least float32.

    Args:
        logits: [B, T, V], overwritten unless scores are wanted; the last position of a row follows
            its prefix and all drafted tokens, the one before it all but one, and so on.
        rows: one for each of the batch.
        drafted: int64 [B, >= T-1], the tokens drafted after the prefix.
        counts: how many of each row's drafted tokens are meant; the rest is padding.
        want_raw: whether to compute raw probabilities too.
        want_scores: whether to keep what the probabilities are the softmax of.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = _each(logits, rows, drafted, counts, truncate=True)
    raw = None
    if want_raw:
        raw = _each(logits, rows, drafted, counts, truncate=False).softmax(-1)
    kinds: dict[tuple[bool, str], list[int]] = {}
    for place, row in enumerate(rows):
        kinds.setdefault(row.request.processing.kind, []).append(place)
    if len(kinds) == 1:
        processing = rows[0].request.processing
        scores = _warped(processing, scores)
        probs = _drawn(processing, scores, in_place=not want_scores)
        return Distributions(probs, scores if want_scores else None, raw)
    warped, probs = torch.empty_like(scores), torch.empty_like(scores)
    for places in kinds.values():
        processing = rows[places[0]].request.processing
        warped[places] = _warped(processing, scores[places])
        probs[places] = _drawn(processing, warped[places], in_place=True)
    return Distributions(probs, warped if want_scores else None, raw)


def _warped(processing: Processing, scores: Tensor) -> Tensor:
    """The scores behind all warpers, [b, T, V]; a greedy row has none."""
    flat = scores.flatten(0, 1)
    nothing = flat.new_zeros(flat.shape[0], 0, dtype=torch.long)
    for warper in () if processing.greedy else processing.warpers:
        flat = warper(nothing, flat)
    return flat.view_as(scores)


def _drawn(processing: Processing, scores: Tensor, *, in_place: bool) -> Tensor:
    """The probabilities tokens are drawn from, [b, T, V]; `in_place` of the scores."""
    if processing.greedy:
        best, token = scores.max(-1)
        probs = torch.zeros_like(scores).scatter_(-1, token[..., None], 1.0)
        # A one-hot row would hide that it was made from NaN or from nothing.
        probs[..., 0].masked_fill_(~best.isfinite(), float("nan"))
        return probs
    # New memory for a large batch's distributions costs more than they do.
    return torch.softmax(scores, -1, out=scores) if in_place else scores.softmax(-1)


def _each(
    logits: Tensor,
    rows: Sequence[Row],
    drafted: Tensor,
    counts: Sequence[int],
    *,
    truncate: bool,
) -> Tensor:
    """Applies the processors that may look at the prefix, row by row and position by position.

    Positions that no text comes to, behind its end or the tokens meant, stay as they are: a grammar
    may have no answer there.
    """
    if not any(row.request.processing.prefixed for row in rows):
        return logits
    scores = logits.clone()
    first = drafted.shape[1] + 1 - logits.shape[1]
    for place, row in enumerate(rows):
        prefix = row.text
        text = torch.cat([torch.tensor(prefix, device=logits.device), drafted[place]])[None]
        reached = row.positions(drafted[place, : counts[place]].tolist())
        for position in range(first, min(reached, drafted.shape[1] + 1)):
            seen = text[:, : len(prefix) + position]
            at = scores[place, position - first][None]
            for processor in row.request.processing.prefixed:
                if truncate or not isinstance(processor, TRUNCATING):
                    at = processor(seen, at)
            scores[place, position - first] = at[0]
    return scores
