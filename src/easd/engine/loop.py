"""Propose, score, verify, commit: the decoder's loop over a batch of slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from easd.core.noise import Coupling, Noise
from easd.core.types import Decision, Rule, Step
from easd.core.verify import verify
from easd.engine.distributions import Distributions, distributions
from easd.engine.drafter import Draft, Drafter
from easd.engine.request import Request, Row
from easd.engine.slots import SlotModel
from easd.errors import NumericsError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step of the loop, for whoever watches: traces, progress, streaming.

    Attributes:
        rows: the rows that took part, in batch order, as they are after the step.
        starts: position of draft token 0 in each row's text.
        committed: the tokens each row gained, after any stop.
        step, decision, noise: what verification saw and said.
        seconds: wall time by part: prefill, draft, target, verify, commit.
    """

    rows: list[Row]
    starts: list[int]
    committed: list[list[int]]
    step: Step
    decision: Decision
    noise: Noise
    seconds: dict[str, float]


class Engine:
    """Decodes requests in `num_rows` slots; a row that ends makes room for the next in line."""

    def __init__(
        self,
        target: SlotModel,
        drafter: Drafter,
        rule: Rule,
        *,
        vocab_size: int,
        gamma: int,
        num_rows: int,
        noise: Coupling = "independent",
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.rule = rule
        self.vocab_size = vocab_size
        self.gamma = gamma
        self.num_rows = num_rows
        self.noise: Coupling = noise
        self.waiting: deque[Request] = deque()
        self.rows: list[Row] = []

    @property
    def busy(self) -> bool:
        """Whether anything is being decoded or waits for it."""
        return bool(self.rows or self.waiting)

    @torch.inference_mode()
    def step(self) -> StepRecord:
        """Takes in waiting requests and moves every row on by at least one token."""
        clock = _Clock()
        self._admit()
        rows = list(self.rows)
        starts = [len(row.ids) for row in rows]
        noise = self._noise(rows, starts)
        clock.lap("prefill")
        draft = self.drafter.propose(
            rows,
            [min(self.gamma, row.remaining - 1) for row in rows],
            noise,
            bonus=self.rule.evaluates_bonus,
            raw=self._wants_raw(rows),
        )
        clock.lap("draft")
        logits = self._score(rows, draft)
        clock.lap("target")
        found = self._distributions(rows, draft, logits)
        step = self._step(rows, draft, found)
        decision = verify(self.rule, step, noise)
        emitted, accepted, penalised = _read(step, decision)
        clock.lap("verify")
        committed = self._commit(draft, emitted, accepted, penalised, found.scores)
        clock.lap("commit")
        return StepRecord(
            rows=rows,
            starts=starts,
            committed=committed,
            step=step,
            decision=decision,
            noise=noise,
            seconds=clock.seconds,
        )

    @torch.inference_mode()
    def cancel(self, number: int) -> None:
        """Drops a request, waiting or decoding, and frees its slots."""
        self.waiting = deque(r for r in self.waiting if r.number != number)
        self._release([place for place, r in enumerate(self.rows) if r.request.number == number])

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
            coupling=self.noise,
        )

    def _wants_raw(self, rows: Sequence[Row]) -> bool:
        greedy = rows[0].request.processing.greedy
        return self.rule.needs_raw == "always" or (greedy and self.rule.needs_raw == "greedy")

    def _score(self, rows: Sequence[Row], draft: Draft) -> Tensor:
        last = torch.tensor([row.ids[-1:] for row in rows], device=self.target.device)
        logits = self.target.forward(torch.cat([last, draft.tokens], 1))
        return logits[..., : self.vocab_size]

    def _distributions(self, rows: Sequence[Row], draft: Draft, logits: Tensor) -> Distributions:
        return distributions(
            logits,
            rows,
            draft.tokens,
            draft.counts,
            want_raw=self._wants_raw(rows),
        )

    def _step(self, rows: Sequence[Row], draft: Draft, found: Distributions) -> Step:
        device = draft.tokens.device
        dtype = torch.promote_types(draft.probs.dtype, found.probs.dtype)
        greedy = rows[0].request.processing.greedy
        return Step(
            draft_tokens=draft.tokens,
            num_draft_tokens=torch.tensor(draft.counts, device=device),
            draft_probs=draft.probs.to(dtype),
            target_probs=found.probs.to(dtype),
            raw_draft_probs=None if draft.raw is None else draft.raw.to(dtype),
            raw_target_probs=None if found.raw is None else found.raw.to(dtype),
            greedy=torch.ones(len(rows), dtype=torch.bool, device=device) if greedy else None,
        )

    def _commit(
        self,
        draft: Draft,
        emitted: list[list[int]],
        accepted: list[int],
        penalised: list[bool],
        scores: Tensor,
    ) -> list[list[int]]:
        committed, lengths, done = [], [], []
        for place, row in enumerate(self.rows):
            standing = len(row.ids) + accepted[place]
            kept = row.extend(emitted[place])
            committed.append(emitted[place][:kept])
            row.counts.add(
                proposed=draft.counts[place],
                accepted=accepted[place],
                penalised=penalised[place],
                kept=kept,
            )
            if row.request.keep_scores:
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


def _read(step: Step, decision: Decision) -> tuple[list[list[int]], list[int], list[bool]]:
    """Brings a decision to the host: tokens emitted by each row, tokens accepted, penalties.

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
    emitted = []
    for accepted, next_token, _, bad_target, bad_draft, *drafted in table:
        if bad_target or bad_draft:
            raise NumericsError(
                f"the {'target' if bad_target else 'draft'}'s logits are NaN or leave no token "
                "to choose; check its files, its dtype and the logits processors"
            )
        emitted.append([*drafted[:accepted], next_token])
    return emitted, [line[0] for line in table], [bool(line[2]) for line in table]


class _Clock:
    """Wall time by part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, part: str) -> None:
        now = perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
