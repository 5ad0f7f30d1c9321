"""The values that rules, couplings and verification exchange.

Shape letters, here and everywhere: B rows of the batch, K the padded draft length, V the
vocabulary. Position k < K holds draft token k; position `num_draft_tokens` of a row is its bonus
position, and later ones are padding.
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
    """The input of one verification step.

    Probabilities are those after all processors, in at least float32. Raw probabilities are at
    temperature 1 without truncation (penalties and bans stay), present where the rule needs them.

    Rules and gates look at `draft_probs`, the draft's opinion: rows of zeros where the draft was
    not evaluated, such as the bonus position unless the rule asks for it. Couplings look only at
    the proposal, from which draft tokens were drawn; it may be another distribution.
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
        """The distributions that draft tokens were drawn from, [B, K+1, V]."""
        return self.draft_probs if self.proposal_probs is None else self.proposal_probs

    def is_bonus(self, at: Tensor) -> Tensor:
        """Whether positions `at` [B] are the rows' bonus positions, as bool [B]."""
        return at >= self.num_draft_tokens

    def has_draft(self) -> Tensor:
        """Which positions hold a draft token (before `at` narrowed the step), bool [B, K+1]."""
        if self.drafted is not None:
            return self.drafted
        positions = torch.arange(self.draft_tokens.shape[1] + 1, device=self.draft_tokens.device)
        return positions < self.num_draft_tokens[:, None]

    def raw(self) -> tuple[Tensor, Tensor]:
        """The draft's and the target's raw probabilities, [B, K+1, V] each."""
        if self.raw_draft_probs is None or self.raw_target_probs is None:
            raise RuleError("this step has no raw probabilities; declare `needs_raw` in the rule")
        return self.raw_draft_probs, self.raw_target_probs

    def opinions(self) -> tuple[Tensor, Tensor]:
        """Both models' probabilities, [B, K+1, V] each: raw ones for greedy rows."""
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
        """The step narrowed to n positions as rows: K = 0, probabilities [n, 1, V].

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
    """Probabilities of what happens to each draft token; the rest to 1 is an ordinary rejection.

    Under block verification, `accept_prob` is the probability that the block is kept up to this
    token, given that no later token is kept.
    """

    accept_prob: Tensor  # [B, K]
    penalty_prob: Tensor  # [B, K]
    signals: Mapping[str, Tensor]  # name -> [B, K+1], for traces
    law_weight: Tensor | None = None  # [B, K+1], w_i of `couplings.Blockwise`


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The outcome of a step: `num_accepted` draft tokens are kept, then `next_token` follows."""

    num_accepted: Tensor  # int64 [B]
    next_token: Tensor  # int64 [B]
    penalised: Tensor  # bool [B]: the first refusal was the rule's penalty
    judgement: Judgement
