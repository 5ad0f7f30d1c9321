"""From logits to the distributions that tokens are drawn from, the same way for draft and target.

Processors that may look at the text so far run once for each row and position, with exactly that
position's prefix. The warpers behind them (temperature, top-k, top-p, min-p) never look at the
prefix and run on all positions at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation import logits_process as hf

if TYPE_CHECKING:
    from easd.engine.request import Row

Processor = Callable[..., Tensor]  # a transformers LogitsProcessor: (input_ids, scores)

_TRUNCATING = (
    hf.TemperatureLogitsWarper,
    hf.TopKLogitsWarper,
    hf.TopPLogitsWarper,
    hf.TopHLogitsWarper,
    hf.MinPLogitsWarper,
    hf.TypicalLogitsWarper,
    hf.EpsilonLogitsWarper,
    hf.EtaLogitsWarper,
)
_PREFIX_FREE = (*_TRUNCATING, hf.LogitNormalization, hf.InfNanRemoveLogitsProcessor)


@dataclass(frozen=True, slots=True)
class NoEndBefore:
    """Bans the tokens `ends` from texts shorter than `length`, prompt included, in place.

    transformers' processors of the same effect compare every token of the vocabulary with them.
    """

    length: int
    ends: tuple[int, ...]

    @classmethod
    def standing_for(cls, processor: Any) -> Processor:
        """`processor`, or what does the same as it."""
        if type(processor) is hf.MinNewTokensLengthLogitsProcessor:
            length = processor.prompt_length_to_skip + processor.min_new_tokens
        elif type(processor) is hf.MinLengthLogitsProcessor:
            length = processor.min_length
        else:
            return processor
        return cls(length, tuple(processor.eos_token_id.reshape(-1).tolist()))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[-1] < self.length:
            for end in self.ends:
                scores[:, end : end + 1] = -inf  # nothing where the model does not know the token
        return scores


@dataclass(frozen=True, slots=True)
class Processing:
    """What one request does to logits before a token is drawn.

    Attributes:
        processors: applied in order.
        greedy: whether to take the most probable token.
        proposal_power: draft tokens are drawn from the draft's distribution raised to this power,
            unless greedy; infinity takes its most probable token.
        kind: equal for requests whose `warpers` can run as one batch.
    """

    processors: tuple[Processor, ...] = ()
    greedy: bool = False
    proposal_power: float = 1.0
    kind: tuple[bool, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        own = tuple(NoEndBefore.standing_for(processor) for processor in self.processors)
        object.__setattr__(self, "processors", own)
        warpers = repr([(type(warper), vars(warper)) for warper in self.warpers])
        object.__setattr__(self, "kind", (self.greedy, warpers))

    @property
    def warpers(self) -> tuple[Processor, ...]:
        """The trailing processors that never look at the prefix."""
        return self.processors[self._split :]

    def prefixed(self, length: int) -> tuple[Processor, ...]:
        """The processors up to the last one that may look at the prefix.

        Args:
            length: of the text so far; what only acts on shorter ones is left out.
        """
        before = self.processors[: self._split]
        return tuple(p for p in before if not isinstance(p, NoEndBefore) or length < p.length)

    @property
    def _split(self) -> int:
        last = len(self.processors)
        while last > 0 and isinstance(self.processors[last - 1], _PREFIX_FREE):
            last -= 1
        return last


@dataclass(frozen=True, slots=True)
class Distributions:
    """Distributions of B rows at T positions.

    Attributes:
        probs: what tokens are drawn from, [B, T, V].
        scores: the processed logits behind `probs`, where asked for.
        raw: probabilities at temperature 1 without truncation, where asked for.
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
        drafted: int64 [B, >= T-1], the tokens drafted after the prefix.
        counts: each row's number of drafted tokens; the rest of `drafted` is padding.
        want_raw: whether to compute raw probabilities too.
        want_scores: whether to keep the processed logits.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    acting = {place: found for place, row in enumerate(rows) if (found := prefixed(row))}
    scores = logits.clone() if acting and want_raw else logits
    _with_prefixes(scores, rows, acting, drafted, counts)
    raw = None
    if want_raw:
        acting = {
            place: tuple(p for p in found if not isinstance(p, _TRUNCATING))
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
    """What draft tokens are drawn from, [B, T, V]; None where it is the draft's `probs` itself."""
    powers = [
        1.0 if row.request.processing.greedy else row.request.processing.proposal_power
        for row in rows
    ]
    if all(power == 1 for power in powers):
        return None
    power = torch.tensor(powers, dtype=probs.dtype, device=probs.device)[:, None, None]
    return torch.where(power == 1, probs, raised(probs, power))


def raised(probs: Tensor, power: Tensor | float) -> Tensor:
    """`probs` [..., V] to a power, normalised; infinity leaves the most probable token."""
    # Relative to the best token, a power can neither overflow nor leave nothing.
    powers = (probs / probs.amax(-1, keepdim=True)).pow(power)
    return powers / powers.sum(-1, keepdim=True)


def prefixed(row: Row) -> tuple[Processor, ...]:
    """A row's processors that may look at the prefix, without those that are done with its text."""
    return row.request.processing.prefixed(len(row.request.padding) + len(row.ids))


def _with_prefixes(
    scores: Tensor,
    rows: Sequence[Row],
    acting: Mapping[int, Sequence[Processor]],
    drafted: Tensor,
    counts: Sequence[int],
) -> None:
    """Applies processors that may look at the prefix, in place: row by row, position by position.

    Positions that the text cannot reach, behind its end or its last drafted token, are left alone:
    a grammar may have no answer there. Where a processor raises, its row fails and its scores are
    NaN.

    Args:
        acting: those of each row that has any, by its place.
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
    text = torch.cat([torch.tensor(prefix, device=scores.device), drafted])[None]
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
