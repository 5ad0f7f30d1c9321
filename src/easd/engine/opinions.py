"""A draft's opinion at one position, and the token that it proposes there."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easd.core.noise import Noise, race
from easd.engine.request import Row
from easd.engine.sampling import Distributions, distributions, prefixed, proposals


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What B rows learn from their draft at one position.

    Attributes:
        probs: the draft's distributions, [B, 1, V].
        raw: the same at temperature 1 without truncation, if asked for.
        proposal: the distributions that `token` was drawn from, [B, 1, V]; None if `probs`.
        token: the draft tokens, int64 [B]; None where none are asked for.
        confidence: the draft's probabilities of `token` [B], if asked for.
    """

    probs: Tensor
    raw: Tensor | None
    proposal: Tensor | None = None
    token: Tensor | None = None
    confidence: Tensor | None = None


class Opinions:
    """How the rows of one step ask their draft.

    Args:
        known: ids of the only tokens that the draft gives any probability, or None.
        raw: ask for raw distributions.
        confident: ask how probable a drafted token is.
    """

    def __init__(
        self, rows: Sequence[Row], known: Tensor | None, *, raw: bool, confident: bool
    ) -> None:
        kinds = [row.request.processing for row in rows]
        self.rows = rows
        self.greedy = all(kind.greedy for kind in kinds)
        self._constrained = any(prefixed(row) for row in rows)
        self._known = None if self._constrained else known
        self._raw, self._confident = raw, confident
        # Greedy probabilities are one-hot; only scores show the draft's confidence.
        some_greedy = any(kind.greedy for kind in kinds)
        self._wants_scores = self._constrained or (some_greedy and confident)
        alike = {(kind.kind, kind.proposal_power) for kind in kinds}
        recordable = len(alike) == 1 and kinds[0].reads_nothing and not self._constrained
        self._alike = alike.pop() if recordable else None

    @property
    def kind(self) -> Hashable | None:
        """Equal for steps that compute opinions in the same way; None if no graph could do it.

        That is so where texts matter, rows differ in how they are processed, or a processor reads
        numbers.
        """
        return None if self._alike is None else (self._alike, self._raw, self._confident)

    def at(
        self,
        drafted: Tensor,
        counts: Sequence[int],
        logits: Tensor,
        noise: Noise,
        place: Tensor | int | None = None,
        clocks: Tensor | None = None,
    ) -> Opinion:
        """The opinion of `logits` [B, 1, V] after `drafted` [B, k].

        Args:
            drafted, counts: the block so far and each row's number of tokens to draft.
            place: the position in the block, which may be int64 [B]; None to draw no token.
            clocks: the noise of the position's draft tokens [B, V], if computed before.
        """
        found = distributions(
            logits,
            self.rows,
            drafted,
            counts,
            want_raw=self._raw,
            want_scores=self._wants_scores,
        )
        banned = _all_banned(found) if self._constrained else None
        probs = _certain_where(banned, found.probs)
        raw = found.raw if found.raw is None else _certain_where(banned, found.raw)
        if place is None:
            return Opinion(probs=probs, raw=raw)
        proposal = proposals(probs, self.rows)
        source = (probs if proposal is None else proposal)[:, 0]
        if self.greedy:
            token = source.argmax(-1)
        elif clocks is not None:
            token = race(source, clocks)
        else:
            if isinstance(place, int):
                place = torch.full((len(source),), place, device=source.device)
            token = noise.drafted(source, place, self._known)
        return Opinion(
            probs=probs,
            raw=raw,
            proposal=proposal,
            token=token,
            confidence=_confidence(found, token) if self._confident else None,
        )


def _all_banned(found: Distributions) -> Tensor:
    """Where every token that the draft knows is banned, as bool [B, T]."""
    assert found.scores is not None, "scores were asked for"
    return found.scores.amax(-1) == float("-inf")


def _confidence(found: Distributions, token: Tensor) -> Tensor:
    """The draft's probability [B] of `token` [B], before greedy decoding makes it one-hot."""
    probs = found.probs if found.scores is None else found.scores.softmax(-1)
    return probs[:, 0].gather(-1, token[:, None])[:, 0]


def _certain_where(banned: Tensor | None, probs: Tensor) -> Tensor:
    """`probs` [..., V], replaced by token 0 with probability 1 where `banned` [...].

    A processor may ban every token that a reduced head knows. Any proposal is exact there: if the
    target excludes it, it is refused and replaced.
    """
    if banned is None:
        return probs
    certain = torch.zeros_like(probs)
    certain[..., 0] = 1
    return torch.where(banned[..., None], certain, probs)
