"""Propose, score, verify, commit: the decoder's loop over a batch of slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from easd.core.couplings import Coupling
from easd.core.noise import Noise
from easd.core.rules import Rule
from easd.core.step import Decision, Step
from easd.core.verify import verify
from easd.engine.distributions import Distributions, distributions
from easd.engine.drafters import Draft, Drafter
from easd.engine.models.slots import SlotModel
from easd.engine.request import Request, Row
from easd.errors import NumericsError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step of rows that share a rule, for whoever watches: traces, progress, streaming.

    Attributes:
        rows: the rows that took part, in batch order, as they are after the step.
        starts: position of draft token 0 in each row's text.
        committed: the tokens each row gained, after any stop.
        step, decision, noise: what verification saw and said.
        seconds: wall time of the whole batch by part: prefill, draft, target, verify, commit.
    """

    rows: list[Row]
    starts: list[int]
    committed: list[list[int]]
    step: Step
    decision: Decision
    noise: Noise
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Tokens that a row emits, how many of them were drafted, and whether a penalty ended them."""

    emitted: list[int]
    accepted: int
    penalised: bool


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a batch that one call of a rule verified, by their places."""

    places: list[int]
    step: Step
    noise: Noise
    decision: Decision
    outcomes: list[_Outcome]


class Engine:
    """Decodes requests in `num_rows` slots; a row that ends makes room for the next in line.

    Requests may differ in everything that is theirs, their rule included.
    """

    def __init__(
        self,
        target: SlotModel,
        drafter: Drafter,
        rule: Rule,
        *,
        vocab_size: int,
        gamma: int,
        num_rows: int,
        coupling: Coupling | None = None,
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.rule = rule
        self.vocab_size = vocab_size
        self.gamma = gamma
        self.num_rows = num_rows
        self.coupling = coupling
        self.waiting: deque[Request] = deque()
        self.rows: list[Row] = []

    @property
    def busy(self) -> bool:
        """Whether anything is being decoded or waits for it."""
        return bool(self.rows or self.waiting)

    @torch.inference_mode()
    def step(self) -> list[StepRecord]:
        """Takes in waiting requests and moves every row on by at least one token.

        Returns:
            A record for each rule and greediness among the rows.
        """
        clock = _Clock()
        self._admit()
        rows = list(self.rows)
        starts = [len(row.ids) for row in rows]
        noise = self._noise(rows, starts)
        rule_wants_raw = any(self._needs_raw(row) for row in rows)
        clock.lap("prefill")
        draft = self.drafter.propose(
            rows,
            [min(self.gamma, row.remaining - 1) for row in rows],
            noise,
            bonus=self.rule.draft_at_bonus,
            raw=rule_wants_raw,
        )
        clock.lap("draft")
        logits = self._score(rows, draft)
        clock.lap("target")
        found = distributions(
            logits,
            rows,
            draft.tokens,
            draft.counts,
            want_raw=rule_wants_raw or any(row.request.wants_raw for row in rows),
            want_scores=any(row.request.keep_scores for row in rows),
        )
        parts = [self._verify(places, draft, found, noise) for places in self._alike(rows)]
        clock.lap("verify")
        committed = self._commit(draft, parts, found.scores)
        clock.lap("commit")
        return [
            StepRecord(
                rows=[rows[place] for place in part.places],
                starts=[starts[place] for place in part.places],
                committed=[committed[place] for place in part.places],
                step=part.step,
                decision=part.decision,
                noise=part.noise,
                seconds=clock.seconds,
            )
            for part in parts
        ]

    @torch.inference_mode()
    def cancel(self, request: Request) -> None:
        """Drops a request, waiting or decoding, and frees its slots."""
        self.waiting = deque(r for r in self.waiting if r is not request)
        self._release([place for place, r in enumerate(self.rows) if r.request is request])

    def _admit(self) -> None:
        first = len(self.rows)
        while self.waiting and len(self.rows) < self.num_rows:
            self.rows.append(Row.start(self.waiting.popleft()))
        admitted = self.rows[first:]
        if not admitted:
            return
        # The last token of a text is never cached: the next forward begins with it.
        self.target.prefill(first, [row.ids[:-1] for row in admitted])
        self.drafter.admit(first, admitted)

    def _noise(self, rows: Sequence[Row], starts: list[int]) -> Noise:
        device = self.target.device
        return Noise(
            keys=torch.tensor([row.key for row in rows], device=device),
            start=torch.tensor(starts, device=device),
            shared=self.coupling == "shared",
        )

    def _rule(self, row: Row) -> Rule:
        return self.rule if row.request.rule is None else row.request.rule

    def _coupling(self, row: Row) -> Coupling:
        if self.coupling == "shared":
            return "shared"
        if row.request.coupling is not None:
            return row.request.coupling
        return self._rule(row).default_coupling if self.coupling is None else self.coupling

    def _needs_raw(self, row: Row) -> bool:
        needs = self._rule(row).needs_raw
        return needs == "always" or (needs == "greedy" and row.request.processing.greedy)

    def _alike(self, rows: Sequence[Row]) -> list[list[int]]:
        """Places of rows that one call of a rule verifies."""
        groups: dict[tuple[Rule, Coupling, bool], list[int]] = {}
        for place, row in enumerate(rows):
            kind = (self._rule(row), self._coupling(row), row.request.processing.greedy)
            groups.setdefault(kind, []).append(place)
        return list(groups.values())

    def _score(self, rows: Sequence[Row], draft: Draft) -> Tensor:
        last = torch.tensor([row.ids[-1:] for row in rows], device=self.target.device)
        logits = self.target.forward(torch.cat([last, draft.tokens], 1))
        return logits[..., : self.vocab_size]

    def _verify(self, places: list[int], draft: Draft, found: Distributions, noise: Noise) -> _Part:
        first = self.rows[places[0]]
        step = self._step(places, draft, found)
        if len(places) < len(self.rows):
            noise = replace(noise, keys=noise.keys[places], start=noise.start[places])
        decision = verify(self._rule(first), step, noise, self._coupling(first))
        return _Part(places, step, noise, decision, _read(step, decision))

    def _step(self, places: list[int], draft: Draft, found: Distributions) -> Step:
        first = self.rows[places[0]]
        greedy = first.request.processing.greedy
        device = draft.tokens.device
        dtype = torch.promote_types(draft.probs.dtype, found.probs.dtype)

        at = slice(None) if len(places) == len(self.rows) else places
        needs_raw = self._needs_raw(first)
        wants_raw = needs_raw or any(self.rows[place].request.wants_raw for place in places)

        def raw(probs: Tensor | None, wanted: bool) -> Tensor | None:
            return probs[at].to(dtype) if probs is not None and wanted else None

        return Step(
            draft_tokens=draft.tokens[at],
            num_draft_tokens=torch.tensor([draft.counts[place] for place in places], device=device),
            draft_probs=draft.probs[at].to(dtype),
            target_probs=found.probs[at].to(dtype),
            raw_draft_probs=raw(draft.raw, needs_raw),
            raw_target_probs=raw(found.raw, wants_raw),
            greedy=torch.ones(len(places), dtype=torch.bool, device=device) if greedy else None,
        )

    def _commit(self, draft: Draft, parts: list[_Part], scores: Tensor | None) -> list[list[int]]:
        outcomes = {
            place: outcome
            for part in parts
            for place, outcome in zip(part.places, part.outcomes, strict=True)
        }
        committed, lengths, done = [], [], []
        for place, row in enumerate(self.rows):
            outcome = outcomes[place]
            standing = len(row.ids) + outcome.accepted
            kept = row.extend(outcome.emitted)
            committed.append(outcome.emitted[:kept])
            row.counts.add(
                proposed=draft.counts[place],
                accepted=outcome.accepted,
                penalised=outcome.penalised,
                kept=kept,
            )
            if row.request.keep_scores:
                assert scores is not None, "they were asked for"
                row.scores.extend(scores[place, :kept].clone())
            lengths.append(standing)
            if row.finished:
                done.append(place)
        self.target.lengths[: len(lengths)] = lengths
        self.drafter.commit(lengths)
        self._release(done)
        return committed

    def _release(self, places: list[int]) -> None:
        """Frees rows; the last row moves into each gap, so that the rows in use stay together."""
        for place in sorted(places, reverse=True):
            last = len(self.rows) - 1
            if place != last:
                self.rows[place] = self.rows[last]
                self.target.move(last, place)
                self.drafter.move(last, place)
            self.rows.pop()


def _read(step: Step, decision: Decision) -> list[_Outcome]:
    """Brings a decision to the host.

    Raises:
        NumericsError: A model's probabilities are no distribution.
    """
    columns = [
        decision.num_accepted,
        decision.next_token,
        decision.penalised,
        ~torch.isfinite(step.target_probs[..., 0]).all(1),
        ~torch.isfinite(step.draft_probs[..., 0]).all(1),
    ]
    table = torch.cat([torch.stack([c.long() for c in columns], 1), step.draft_tokens], 1).tolist()
    outcomes = []
    for accepted, next_token, penalised, bad_target, bad_draft, *drafted in table:
        if bad_target or bad_draft:
            raise NumericsError(
                f"the {'target' if bad_target else 'draft'}'s logits are NaN or leave no token "
                "to choose; check its files, its dtype and the logits processors"
            )
        outcomes.append(_Outcome([*drafted[:accepted], next_token], accepted, bool(penalised)))
    return outcomes


class _Clock:
    """Wall time by part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, part: str) -> None:
        now = perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
