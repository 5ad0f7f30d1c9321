"""From logits to the probabilities tokens are drawn from, the same way for draft and target.

Processors that look at the text so far are called for each row and position with that position's
own prefix; the warpers behind them (temperature, top-k, top-p, min-p) see all positions at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from transformers.generation import logits_process as hf

Processor = Callable[..., Tensor]  # a transformers LogitsProcessor: (input_ids, scores)

TRUNCATING = (
    hf.TemperatureLogitsWarper,
    hf.TopKLogitsWarper,
    hf.TopPLogitsWarper,
    hf.TopHLogitsWarper,
    hf.MinPLogitsWarper,
    hf.TypicalLogitsWarper,
    hf.EpsilonLogitsWarper,
    hf.EtaLogitsWarper,
)
_PREFIX_FREE = (*TRUNCATING, hf.LogitNormalization, hf.InfNanRemoveLogitsProcessor)


@dataclass(frozen=True, slots=True)
class Distributions:
    """`probs` [B, T, V], and `raw` [B, T, V] (temperature 1, no truncation) where asked for."""

    probs: Tensor
    raw: Tensor | None
    scores: Tensor


@dataclass(frozen=True, slots=True)
class Processing:
    """What one request does to logits: its processors in order, and whether it is greedy."""

    processors: tuple[Processor, ...] = ()
    greedy: bool = False

    @property
    def warpers(self) -> tuple[Processor, ...]:
        """The tail of the processors that never looks at the prefix."""
        return self.processors[self._split :]

    @property
    def prefixed(self) -> tuple[Processor, ...]:
        """The processors up to the last one that may look at the prefix."""
        return self.processors[: self._split]

    @property
    def _split(self) -> int:
        last = len(self.processors)
        while last > 0 and isinstance(self.processors[last - 1], _PREFIX_FREE):
            last -= 1
        return last


def distributions(
    logits: Tensor,
    processings: Sequence[Processing],
    prefixes: Sequence[Sequence[int]],
    drafted: Tensor,
    *,
    want_raw: bool,
) -> Distributions:
    """Probabilities of B rows at T positions, in at least float32.

    Args:
        logits: [B, T, V]; the last position of a row follows its prefix and all drafted tokens,
            the one before it all but one, and so on.
        processings: One per row; rows of one batch share their warpers and greediness.
        prefixes: Token ids of each row before position 0.
        drafted: int64 [B, >= T-1], the tokens drafted after the prefix.
        want_raw: Whether to compute raw probabilities too.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = _each(logits, processings, prefixes, drafted, truncate=True)
    raw = None
    if want_raw:
        raw = _each(logits, processings, prefixes, drafted, truncate=False).softmax(-1)
    if processings[0].greedy:
        probs = one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)
        return Distributions(probs, raw, scores)
    flat = scores.flatten(0, 1)
    nothing = drafted.new_zeros(flat.shape[0], 0)
    for warper in processings[0].warpers:
        flat = warper(nothing, flat)
    scores = flat.view_as(scores)
    return Distributions(scores.softmax(-1), raw, scores)


def _each(
    logits: Tensor,
    processings: Sequence[Processing],
    prefixes: Sequence[Sequence[int]],
    drafted: Tensor,
    *,
    truncate: bool,
) -> Tensor:
    """Applies the processors that may look at the prefix, row by row and position by position."""
    if not any(processing.prefixed for processing in processings):
        return logits
    scores = logits.clone()
    positions = logits.shape[1]
    for row, (processing, prefix) in enumerate(zip(processings, prefixes, strict=True)):
        text = torch.cat([torch.tensor(prefix, device=logits.device), drafted[row]])[None]
        for position in range(positions):
            seen = text[:, : text.shape[1] - (positions - 1 - position)]
            at = scores[row, position][None]
            for processor in processing.prefixed:
                if truncate or not isinstance(processor, TRUNCATING):
                    at = processor(seen, at)
            scores[row, position] = at[0]
    return scores
