"""Steps of reward-guided texts, and counts of the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenStep:
    """One step of a text.

    Attributes:
        start: number of tokens before the step, the prompt's included.
        drafted: the draft's tokens.
        reward: of the drafted step.
        rewritten: the target's tokens, or None if the drafted step was kept.
    """

    start: int
    drafted: tuple[int, ...]
    reward: float
    rewritten: tuple[int, ...] | None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The step's tokens in the text."""
        return self.drafted if self.rewritten is None else self.rewritten


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCounts:
    """Work for one or several texts.

    Attributes:
        draft_tokens: written by the draft, one forward each.
        draft_kept: draft tokens that are in the text.
        target_tokens: written by the target, one forward each.
    """

    steps_drafted: int = 0
    steps_rewritten: int = 0
    draft_tokens: int = 0
    draft_kept: int = 0
    target_tokens: int = 0

    @classmethod
    def of(cls, steps: Sequence[WrittenStep]) -> StepCounts:
        """Counts the steps of one text or of many."""
        kept = [step for step in steps if step.rewritten is None]
        rewritten = [step for step in steps if step.rewritten is not None]
        return cls(
            steps_drafted=len(steps),
            steps_rewritten=len(rewritten),
            draft_tokens=sum(len(step.drafted) for step in steps),
            draft_kept=sum(len(step.drafted) for step in kept),
            target_tokens=sum(len(step.token_ids) for step in rewritten),
        )

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return self.draft_kept + self.target_tokens

    @property
    def block_efficiency(self) -> float | None:
        """Tokens of the text per target forward; None without one."""
        return self.tokens / self.target_tokens if self.target_tokens else None
