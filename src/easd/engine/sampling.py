"""Turns logits of draft or target into the distributions that tokens are drawn from.

Processors that may look at the text run once for each row and position, with exactly that
position's prefix. The warpers after them (temperature, top-k, top-p, min-p) do not look at the
prefix and run on all positions at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.engine.models.upload import upload
from easd.engine.processing import TRUNCATING, Processing, Processor
from easd.engine.request import Row


@dataclass(frozen=True, slots=True)
class Distributions:
    """Distributions of B rows at T positions.

    Attributes:
        probs: after all processors, [B, T, V].
        scores: the processed logits of `probs`, if asked for.
        raw: probabilities at temperature 1 without truncation, if asked for.
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
    """Processes logits into distributions, in at least float32.

    Args:
        logits: [B, T, V], overwritten unless scores are wanted. The last position of a row follows
            its prefix and all drafted tokens, the one before it all but the last of them, and so
            on.
        rows: the B rows.
        drafted: tokens drafted after the prefix, int64 [B, >= T-1].
        counts: each row's number of drafted tokens; the rest of `drafted` is padding.
        want_raw: compute raw probabilities too.
        want_scores: keep the processed logits.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    acting = {place: found for place, row in enumerate(rows) if (found := prefixed(row))}
    scores = logits.clone() if acting and want_raw else logits
    _with_prefixes(scores, rows, acting, drafted, counts)
    raw = None
    if want_raw:
        acting = {
            place: tuple(p for p in found if not isinstance(p, TRUNCATING))
            for place, found in acting.items()
        }
        _with_prefixes(logits, rows, acting, drafted, counts)
        raw = logits.softmax(-1)
    kinds: dict[tuple[bool, str], list[int]] = {}
    for place, row in enumerate(rows):
        kinds.setdefault(row.request.processing.kind, []).append(place)
    if len(kinds) == 1:
        processing = rows[0].request.processing
        scores = _warp(rows, scores)
        probs = _probs(processing, scores, in_place=not want_scores)
        return Distributions(probs, scores if want_scores else None, raw)
    warped, probs = torch.empty_like(scores), torch.empty_like(scores)
    for places in kinds.values():
        processing = rows[places[0]].request.processing
        warped[places] = _warp([rows[place] for place in places], scores[places])
        probs[places] = _probs(processing, warped[places], in_place=True)
    return Distributions(probs, warped if want_scores else None, raw)


def proposals(probs: Tensor, rows: Sequence[Row]) -> Tensor | None:
    """The distributions that draft tokens are drawn from, [B, T, V]; None if those are `probs`."""
    powers = [
        1.0 if row.request.processing.greedy else row.request.processing.proposal_power
        for row in rows
    ]
    if all(power == 1 for power in powers):
        return None
    if len(set(powers)) == 1:
        return raised(probs, powers[0])
    power = upload(powers, probs.device, probs.dtype)[:, None, None]
    return torch.where(power == 1, probs, raised(probs, power))


def raised(probs: Tensor, power: Tensor | float) -> Tensor:
    """`probs` [..., V] to a power, normalised; infinity leaves the most probable token."""
    # Divided by the largest, a power can neither overflow nor vanish everywhere.
    powers = (probs / probs.amax(-1, keepdim=True)).pow(power)
    return powers / powers.sum(-1, keepdim=True)


def prefixed(row: Row) -> tuple[Processor, ...]:
    """A row's processors that may look at the prefix and still act on its text."""
    return row.request.processing.prefixed(len(row.request.padding) + len(row.ids))


def _with_prefixes(
    scores: Tensor,
    rows: Sequence[Row],
    acting: Mapping[int, Sequence[Processor]],
    drafted: Tensor,
    counts: Sequence[int],
) -> None:
    """Applies the processors `acting` on each row, by its index, at every position in place.

    Positions after the text's end or last drafted token are left alone, since a grammar may not
    define them. Where a processor raises, its row fails and its scores become NaN.
    """
    for place, processors in acting.items():
        row = rows[place]
        if row.error is not None:
            continue
        try:
            _process(scores[place], row, processors, drafted[place], counts[place])
        except Exception as error:
            row.fail(error)
            scores[place] = float("nan")


def _process(
    scores: Tensor, row: Row, processors: Sequence[Processor], drafted: Tensor, count: int
) -> None:
    """Applies one row's processors to its scores [T, V] in place."""
    first = len(drafted) + 1 - len(scores)
    prefix = row.text
    text = torch.cat([upload(prefix, scores.device), drafted])[None]
    reached = row.positions(drafted[:count].tolist())
    for position in range(first, min(reached, len(drafted) + 1)):
        seen = text[:, : len(prefix) + position]
        at = scores[position - first][None]
        for processor in processors:
            at = processor(seen, at)
        scores[position - first] = at[0]


def _warp(rows: Sequence[Row], scores: Tensor) -> Tensor:
    """Applies the warpers of rows of one kind to their scores [b, T, V]; greedy rows have none."""
    processing = rows[0].request.processing
    flat = scores.flatten(0, 1)
    no_ids = flat.new_zeros(flat.shape[0], 0, dtype=torch.long)
    try:
        for warper in () if processing.greedy else processing.warpers:
            flat = warper(no_ids, flat)
    except Exception as error:
        for row in rows:
            row.fail(error)
        flat = torch.full_like(flat, float("nan"))
    return flat.view_as(scores)


def _probs(processing: Processing, scores: Tensor, *, in_place: bool) -> Tensor:
    """Probabilities [b, T, V] of processed scores; `in_place` reuses the memory of the scores."""
    if processing.greedy:
        best, token = scores.max(-1)
        probs = torch.zeros_like(scores).scatter_(-1, token[..., None], 1.0)
        # A one-hot row would hide scores that are NaN or all -inf.
        probs[..., 0].masked_fill_(~best.isfinite(), float("nan"))
        return probs
    # Allocating memory for a large batch costs more than the softmax itself.
    return torch.softmax(scores, -1, out=scores) if in_place else scores.softmax(-1)
