"""The values that rules, couplings and verification exchange.

Shape letters, here and everywhere: B rows of the batch, K the padded draft length, V the
vocabulary. Position k < K holds draft token k; position n = `num_draft_tokens` of a row is that
row's bonus position, and everything after it is padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from easd.errors import RuleError

Models = Literal["both", "target", "draft"]
NeedsRaw = Literal["never", "greedy", "always"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Everything one verification step may look at.

    Probabilities are the ones tokens are drawn from, after every processor, in at least float32.
    A row of `draft_probs` that is all zeros says that the draft was not evaluated there; the bonus
    position is one unless a rule asks for it.

    The raw probabilities are those at temperature 1 without truncation (penalties and bans stay);
    they are given when the rule needs them.

    `draft_probs` are the draft's opinion, which rules and gates look at. Draft tokens may be drawn
    from another distribution, the proposal: it is all that couplings look at.
    """

    draft_tokens: Tensor  # int64 [B, K]
    num_draft_tokens: Tensor  # int64 [B]
    draft_probs: Tensor  # [B, K+1, V]
    target_probs: Tensor  # [B, K+1, V], each row sums to 1
    raw_draft_probs: Tensor | None = None  # [B, K+1, V]
    raw_target_probs: Tensor | None = None  # [B, K+1, V]
    proposal_probs: Tensor | None = None  # [B, K+1, V]; None: tokens were drawn from draft_probs
    greedy: Tensor | None = None  # bool [B]; None where no row is greedy
    in_scope: Tensor | None = None  # bool [B, K+1], where the rule holds; None: everywhere
    drafted: Tensor | None = None  # bool [B, K+1]; None: the positions before `num_draft_tokens`

    @property
    def proposal(self) -> Tensor:
        """What each draft token was drawn from, [B, K+1, V]."""
        return self.draft_probs if self.proposal_probs is None else self.proposal_probs

    def is_bonus(self, at: Tensor) -> Tensor:
        """Whether positions `at` [B] are the rows' bonus positions, as bool [B]."""
        return at >= self.num_draft_tokens

    def has_draft(self) -> Tensor:
        """Which positions hold a draft token, as bool [B, K+1].

        A step narrowed to single positions remembers what these were.
        """
        if self.drafted is not None:
            return self.drafted
        positions = torch.arange(self.draft_tokens.shape[1] + 1, device=self.draft_tokens.device)
        return positions < self.num_draft_tokens[:, None]

    def raw(self) -> tuple[Tensor, Tensor]:
        """The draft's and the target's raw probabilities, [B, K+1, V] each.

        Raises:
            RuleError: The step does not carry them.
        """
        if self.raw_draft_probs is None or self.raw_target_probs is None:
            raise RuleError("this step needs raw probabilities beside the sampling ones")
        return self.raw_draft_probs, self.raw_target_probs

    def opinions(self) -> tuple[Tensor, Tensor]:
        """What draft and target think of every token, [B, K+1, V] each.

        The probabilities tokens are drawn from, and for greedy rows, whose are one-hot, raw ones.

        Raises:
            RuleError: There are greedy rows and no raw probabilities.
        """
        if self.greedy is None:
            return self.draft_probs, self.target_probs
        greedy, (draft_probs, target_probs) = self.greedy[:, None, None], self.raw()
        return (
            torch.where(greedy, draft_probs, self.draft_probs),
            torch.where(greedy, target_probs, self.target_probs),
        )

    def row(self, at: Tensor) -> Step:
        """The step narrowed to position `at[b]` of each row b: K = 0, probabilities [B, 1, V]."""
        return self.at(torch.arange(at.shape[0], device=at.device), at)

    def at(self, rows: Tensor, positions: Tensor) -> Step:
        """The step narrowed to n positions, each a row of its own: K = 0, probabilities [n, 1, V].

        Args:
            rows, positions: int64 [n].
        """

        def pick(probs: Tensor | None) -> Tensor | None:
            return None if probs is None else probs[rows, positions][:, None]

        target_probs, draft_probs = pick(self.target_probs), pick(self.draft_probs)
        assert target_probs is not None
        assert draft_probs is not None
        return Step(
            draft_tokens=self.draft_tokens.new_zeros(rows.shape[0], 0),
            num_draft_tokens=torch.zeros_like(rows),
            draft_probs=draft_probs,
            target_probs=target_probs,
            raw_draft_probs=pick(self.raw_draft_probs),
            raw_target_probs=pick(self.raw_target_probs),
            proposal_probs=pick(self.proposal_probs),
            greedy=None if self.greedy is None else self.greedy[rows],
            in_scope=None if self.in_scope is None else self.in_scope[rows, positions][:, None],
            drafted=self.has_draft()[rows, positions][:, None],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The fate of each draft token before any randomness.

    `accept_prob + penalty_prob <= 1`; what is missing to 1 is an ordinary rejection. Where a block
    is verified as a whole, `accept_prob` is the probability that it is kept up to this token, given
    that nothing behind it is, and `law_weight` what the law weighs against the proposal where the
    block ends. `signals` are the quantities the rule looked at, for the trace.
    """

    accept_prob: Tensor  # [B, K]
    penalty_prob: Tensor  # [B, K]
    signals: Mapping[str, Tensor]  # name -> [B, K+1]
    law_weight: Tensor | None = None  # [B, K+1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What became of one step: `num_accepted` draft tokens are kept, then `next_token` follows."""

    num_accepted: Tensor  # int64 [B]
    next_token: Tensor  # int64 [B]
    penalised: Tensor  # bool [B]: the first refusal was the rule's penalty
    judgement: Judgement
