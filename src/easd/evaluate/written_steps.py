"""The steps of reward-guided texts, and the work they took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenStep:
    """One step of a text: what the draft wrote, its reward, and what the target made of it.

    Attributes:
        start: tokens in front of the step, the prompt's included.
        rewritten: the target's step, or None where the drafted one was kept.
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
    """Work done for one text, or for several.

    Attributes:
        steps_drafted: scored steps; each is one call of the scorer.
        draft_tokens: written by the draft, one forward each.
        draft_kept: those of them that are in the text.
        target_tokens: written by the target, one forward each.
        draft_read, target_read, scored_tokens: tokens read for that, each text from its beginning
            at every step.
    """

    steps_drafted: int = 0
    steps_rewritten: int = 0
    draft_tokens: int = 0
    draft_kept: int = 0
    target_tokens: int = 0
    draft_read: int = 0
    target_read: int = 0
    scored_tokens: int = 0

    @classmethod
    def of(cls, steps: Sequence[WrittenStep]) -> StepCounts:
        """Counts the steps of one text or of many."""
        kept = [step for step in steps if step.rewritten is None]
        rewritten = [step for step in steps if step.rewritten is not None]
        draft_tokens = sum(len(step.drafted) for step in steps)
        draft_read = sum(step.start for step in steps)
        return cls(
            steps_drafted=len(steps),
            steps_rewritten=len(rewritten),
            draft_tokens=draft_tokens,
            draft_kept=sum(len(step.drafted) for step in kept),
            target_tokens=sum(len(step.token_ids) for step in rewritten),
            draft_read=draft_read,
            target_read=sum(step.start for step in rewritten),
            scored_tokens=draft_read + draft_tokens,
        )

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return self.draft_kept + self.target_tokens

    @property
    def block_efficiency(self) -> float | None:
        """Tokens of the text per target forward; None where the target wrote nothing."""
        return self.tokens / self.target_tokens if self.target_tokens else None
