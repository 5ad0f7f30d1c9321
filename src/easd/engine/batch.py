"""The rows of one step, grouped by rule and coupling for verification, and their outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from easd.core.couplings import Coupling
from easd.core.noise import Noise
from easd.core.rules import Rule
from easd.core.step import Decision, Step
from easd.core.verify import verify
from easd.engine.drafters import Draft
from easd.engine.models import graphs
from easd.engine.models.graphs import Graphs, map_tensors
from easd.engine.models.upload import upload
from easd.engine.origins import Origin
from easd.engine.request import Row
from easd.engine.sampling import Distributions, distributions
from easd.errors import NumericsError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step of the rows that one call verified, for traces, progress and streams.

    Attributes:
        rows: in batch order, in their state after the step.
        starts: position of draft token 0 in each row's text.
        committed: the tokens that each row gained, up to its end.
        rule: the rows'.
        step, decision, noise: input and output of verification.
        origins: see `Draft`.
        seconds: wall time of the whole batch by part: prefill, draft, target, verify, commit.
    """

    rows: list[Row]
    starts: list[int]
    committed: list[list[int]]
    rule: Rule
    step: Step
    decision: Decision
    noise: Noise
    origins: list[list[Origin | None]] | None
    seconds: dict[str, float]

    def of(self, places: Sequence[int]) -> StepRecord:
        """The record narrowed to some of its rows."""
        step, decision, noise = map_tensors(
            (self.step, self.decision, self.noise), lambda tensor: tensor[places]
        )
        return replace(
            self,
            rows=[self.rows[place] for place in places],
            starts=[self.starts[place] for place in places],
            committed=[self.committed[place] for place in places],
            step=step,
            decision=decision,
            noise=noise,
            origins=None if self.origins is None else [self.origins[place] for place in places],
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed, and why."""

    row: Row
    error: Exception


class Batch:
    """The rows of one step, each with its rule and processing.

    Args:
        rows: in the order of their slots.
        rule, coupling: of the requests that name none; a coupling of None is the rule's default.
        verifications: recorded in earlier steps.
    """

    def __init__(
        self, rows: Sequence[Row], rule: Rule, coupling: Coupling | None, verifications: Graphs
    ) -> None:
        self.rows = list(rows)
        self.graphs = verifications
        self.starts = [len(row.ids) for row in rows]
        groups: dict[tuple[Rule, Coupling, bool], list[int]] = {}
        for place, row in enumerate(rows):
            row_rule = row.request.rule or rule
            row_coupling = row.request.coupling or coupling or row_rule.default_coupling
            # Either all rows of an engine share noise or none.
            row_coupling = "shared" if coupling == "shared" else row_coupling
            key = (row_rule, row_coupling, row.request.processing.greedy)
            groups.setdefault(key, []).append(place)
        self.groups = [Group(self, *key, places) for key, places in groups.items()]
        jointly = [place for group in self.groups if group.jointly for place in group.places]
        self.verified_jointly = (
            [place in jointly for place in range(len(rows))] if jointly else None
        )
        self.rules_need_raw = any(group.needs_raw for group in self.groups)

    def verify(self, draft: Draft, target: Distributions, noise: Noise) -> list[Verified]:
        """Verifies every group; where a rule raises, only the rows that cause it fail."""
        return [found for group in self.groups for found in group.verify(draft, target, noise)]

    def block_lengths(self, gamma: int) -> list[int]:
        """Number of tokens to draft for each row; a text's last token is always the target's."""
        return [min(gamma, row.remaining - 1) for row in self.rows]

    def process(self, logits: Tensor, draft: Draft) -> Distributions:
        """The target's distributions [B, K+1, V], with scores and raw ones if rows need them."""
        return distributions(
            logits,
            self.rows,
            draft.tokens,
            draft.counts,
            want_raw=self.rules_need_raw or any(row.request.wants_raw for row in self.rows),
            want_scores=any(row.request.keep_scores for row in self.rows),
        )


class Group:
    """Rows of a batch, by their indices in it, that one call verifies."""

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

    def verify(self, draft: Draft, target: Distributions, noise: Noise) -> list[Verified]:
        """Verifies the group at once, or row by row if that raises."""
        step, noise_here = self.step(draft, target), self.narrow(noise)
        try:
            decision, table = self._decide(step, noise_here)
            blocks = read_blocks(table)
        except Exception as error:
            if len(self.places) == 1:
                self.batch.rows[self.places[0]].fail(error)
                return []
            alone = (
                Group(self.batch, self.rule, self.coupling, self._greedy, [place])
                for place in self.places
            )
            return [found for one in alone for found in one.verify(draft, target, noise)]
        for place, block in zip(self.places, blocks, strict=True):
            if isinstance(block, NumericsError):
                self.batch.rows[place].fail(block)
        origins = None if draft.origins is None else [draft.origins[at] for at in self.places]
        return [Verified(self, step, noise_here, decision, origins, blocks)]

    def _decide(self, step: Step, noise: Noise) -> tuple[Decision, Tensor]:
        """The decision, and the table that `read_blocks` reads."""

        def decide(step: Step, noise: Noise) -> tuple[Decision, Tensor]:
            decision = verify(self.rule, step, noise, self.coupling)
            return decision, blocks_table(step, decision)

        # A rule of the user's own may read a number, and then cannot be recorded.
        ours = type(self.rule).__module__.startswith("easd.")
        if not ours or not graphs.serve(step.target_probs.device):
            return decide(step, noise)
        return self.batch.graphs.run((self.rule, self.coupling), decide, step, noise)

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
            num_draft_tokens=upload(counts, device),
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
        return upload(scopes, drafted.device)

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
    """Tokens that a row emits, how many were accepted, and whether a penalty ended the block."""

    tokens: list[int]
    num_accepted: int
    penalised: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """A group after verification: its input and output, and each row's block or error."""

    group: Group
    step: Step
    noise: Noise
    decision: Decision
    origins: list[list[Origin | None]] | None
    blocks: list[Block | NumericsError]

    def record(self, committed: list[list[int]], seconds: dict[str, float]) -> StepRecord | None:
        """The record of the rows that did not fail, or None if all did.

        Args:
            committed: the tokens of every row of the batch.
            seconds: wall time of the step by part.
        """
        group, batch = self.group, self.group.batch
        whole = StepRecord(
            rows=[batch.rows[place] for place in group.places],
            starts=[batch.starts[place] for place in group.places],
            committed=[committed[place] for place in group.places],
            rule=group.rule,
            step=self.step,
            decision=self.decision,
            noise=self.noise,
            origins=self.origins,
            seconds=seconds,
        )
        places = [place for place, row in enumerate(whole.rows) if row.error is None]
        if len(places) == len(whole.rows):
            return whole
        return whole.of(places) if places else None


def blocks_table(step: Step, decision: Decision) -> Tensor:
    """All that a step's rows need to know of it, int64 [B, 5 + K]: one transfer from the device."""
    positions = torch.arange(step.target_probs.shape[1], device=step.target_probs.device)
    # Positions after a row's draft are padding for longer rows.
    padding = positions > step.num_draft_tokens[:, None]
    columns = [
        decision.num_accepted,
        decision.next_token,
        decision.penalised,
        ~(torch.isfinite(step.target_probs[..., 0]) | padding).all(1),
        ~(torch.isfinite(step.draft_probs[..., 0]) | padding).all(1),
    ]
    return torch.cat([torch.stack([c.long() for c in columns], 1), step.draft_tokens], 1)


def read_blocks(table: Tensor) -> list[Block | NumericsError]:
    """Each row's block, or its error if a model's probabilities are NaN."""
    blocks: list[Block | NumericsError] = []
    for accepted, next_token, penalised, bad_target, bad_draft, *drafted in table.tolist():
        if bad_target or bad_draft:
            blocks.append(
                NumericsError(
                    f"the {'target' if bad_target else 'draft'}'s logits are NaN or leave no token "
                    "to choose; check its files, its dtype and the logits processors"
                )
            )
            continue
        blocks.append(Block([*drafted[:accepted], next_token], accepted, bool(penalised)))
    return blocks


def outcomes(
    asked: Sequence[int], verified: Sequence[Verified], committed: Sequence[Sequence[int]]
) -> list[tuple[int, int]]:
    """Each verified row's draft tokens asked for, and tokens gained by its text."""
    return [
        (asked[place], len(committed[place]))
        for found in verified
        for place, block in zip(found.group.places, found.blocks, strict=True)
        if isinstance(block, Block)
    ]


class Clock:
    """Wall time by part of a step, added to `before`, that of steps without a record."""

    def __init__(self, before: Mapping[str, float]) -> None:
        self.seconds = dict(before)
        self._last = perf_counter()

    def lap(self, part: str) -> None:
        """Adds the time since the last lap to `part`."""
        now = perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
