"""The rows of one step: what they ask for, which of them verify together, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from easd.core.couplings import Coupling
from easd.core.noise import Noise
from easd.core.rules import Rule
from easd.core.step import Decision, Step
from easd.engine.drafters import Draft
from easd.engine.request import Row
from easd.engine.sampling import Distributions, distributions
from easd.errors import NumericsError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step of the rows that one call of a rule verified, for traces, progress and streams.

    Attributes:
        rows: the rows that took part, in batch order, in their state after the step.
        starts: position of draft token 0 in each row's text.
        committed: the tokens that each row gained, up to its end.
        step, decision, noise: input and output of verification.
        seconds: wall time of the whole batch by part: prefill, draft, target, verify, commit.
    """

    rows: list[Row]
    starts: list[int]
    committed: list[list[int]]
    step: Step
    decision: Decision
    noise: Noise
    seconds: dict[str, float]


class Batch:
    """The rows of one step, of which each may have a rule and processing of its own.

    Args:
        rows: in the order of their slots.
        rule, coupling: of the requests that name none; a coupling of None is the rule's default.
    """

    def __init__(self, rows: Sequence[Row], rule: Rule, coupling: Coupling | None) -> None:
        self.rows = list(rows)
        self.starts = [len(row.ids) for row in rows]
        groups: dict[tuple[Rule, Coupling, bool], list[int]] = {}
        for place, row in enumerate(rows):
            own = rule if row.request.rule is None else row.request.rule
            # Noise is shared by all of an engine's rows or by none.
            asked: Coupling | None = coupling
            if coupling != "shared" and row.request.coupling is not None:
                asked = row.request.coupling
            verified = own.default_coupling if asked is None else asked
            key = (own, verified, row.request.processing.greedy)
            groups.setdefault(key, []).append(place)
        self.groups = [Group(self, *key, places) for key, places in groups.items()]
        jointly = [place for group in self.groups if group.jointly for place in group.places]
        self.verified_jointly = (
            [place in jointly for place in range(len(rows))] if jointly else None
        )
        self.rules_need_raw = any(group.needs_raw for group in self.groups)

    def block_lengths(self, gamma: int) -> list[int]:
        """How many tokens to draft for each row; its last token is always the target's."""
        return [min(gamma, row.remaining - 1) for row in self.rows]

    def process(self, logits: Tensor, draft: Draft) -> Distributions:
        """The target's distributions, [B, K+1, V], and whatever else the rows ask for."""
        return distributions(
            logits,
            self.rows,
            draft.tokens,
            draft.counts,
            want_raw=self.rules_need_raw or any(row.request.wants_raw for row in self.rows),
            want_scores=any(row.request.keep_scores for row in self.rows),
        )


class Group:
    """Rows of a batch, by their places in it, that one call of a rule verifies."""

    def __init__(
        self, batch: Batch, rule: Rule, coupling: Coupling, greedy: bool, places: list[int]
    ) -> None:
        self.batch = batch
        self.rule = rule
        self.coupling: Coupling = coupling
        self.jointly = coupling == "block"
        self.places = places
        self.needs_raw = rule.needs_raw == "always" or (rule.needs_raw == "greedy" and greedy)
        self._greedy = greedy
        self._is_whole_batch = len(places) == len(batch.rows)

    def step(self, draft: Draft, target: Distributions) -> Step:
        """The verification step of these rows."""
        device = draft.tokens.device
        dtype = torch.promote_types(draft.probs.dtype, target.probs.dtype)
        at = slice(None) if self._is_whole_batch else self.places
        rows = [self.batch.rows[place] for place in self.places]
        wants_raw = self.needs_raw or any(row.request.wants_raw for row in rows)

        def given(probs: Tensor | None, wanted: bool = True) -> Tensor | None:
            return probs[at].to(dtype) if probs is not None and wanted else None

        counts = [draft.counts[place] for place in self.places]
        return Step(
            draft_tokens=draft.tokens[at],
            num_draft_tokens=torch.tensor(counts, device=device),
            draft_probs=draft.probs[at].to(dtype),
            target_probs=target.probs[at].to(dtype),
            proposal_probs=given(draft.proposals),
            raw_draft_probs=given(draft.raw, self.needs_raw),
            raw_target_probs=given(target.raw, wants_raw),
            greedy=torch.ones(len(rows), dtype=torch.bool, device=device) if self._greedy else None,
            in_scope=self._in_scope(rows, draft.tokens[at]),
        )

    def _in_scope(self, rows: list[Row], drafted: Tensor) -> Tensor | None:
        if not any(row.request.scoped for row in rows):
            return None
        scopes = [row.in_scope(tokens) for row, tokens in zip(rows, drafted.tolist(), strict=True)]
        return torch.tensor(scopes, device=drafted.device)

    def narrow(self, noise: Noise) -> Noise:
        """The batch's noise, narrowed to these rows."""
        if self._is_whole_batch:
            return noise
        return replace(
            noise,
            keys=noise.keys[self.places],
            start=noise.start[self.places],
            fresh=None if noise.fresh is None else noise.fresh[self.places],
        )


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens that a row emits, how many of them were drafted, and whether a penalty ended them."""

    tokens: list[int]
    num_accepted: int
    penalised: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """A group after verification: what went in, what came out, and each row's block."""

    group: Group
    step: Step
    noise: Noise
    decision: Decision
    blocks: list[Block]

    def record(self, committed: list[list[int]], seconds: dict[str, float]) -> StepRecord:
        """The group's record; `committed` are the tokens of every row of the batch."""
        group, batch = self.group, self.group.batch
        return StepRecord(
            rows=[batch.rows[place] for place in group.places],
            starts=[batch.starts[place] for place in group.places],
            committed=[committed[place] for place in group.places],
            step=self.step,
            decision=self.decision,
            noise=self.noise,
            seconds=seconds,
        )


def read_blocks(step: Step, decision: Decision) -> list[Block]:
    """Copies a decision to the host, in one transfer.

    Raises:
        NumericsError: A model's probabilities are not a distribution.
    """
    columns = [
        decision.num_accepted,
        decision.next_token,
        decision.penalised,
        ~torch.isfinite(step.target_probs[..., 0]).all(1),
        ~torch.isfinite(step.draft_probs[..., 0]).all(1),
    ]
    table = torch.cat([torch.stack([c.long() for c in columns], 1), step.draft_tokens], 1).tolist()
    blocks = []
    for accepted, next_token, penalised, bad_target, bad_draft, *drafted in table:
        if bad_target or bad_draft:
            raise NumericsError(
                f"the {'target' if bad_target else 'draft'}'s logits are NaN or leave no token "
                "to choose; check its files, its dtype and the logits processors"
            )
        blocks.append(Block([*drafted[:accepted], next_token], accepted, bool(penalised)))
    return blocks


class Clock:
    """Wall time by part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, part: str) -> None:
        """Adds the time since the last lap to `part`."""
        now = perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
