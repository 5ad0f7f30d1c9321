"""Propose, score, verify, commit, record: speculative decoding of a batch, one step at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from easd.core.couplings import Coupling
from easd.core.noise import Noise
from easd.core.rules import Rule, rule_name
from easd.core.verify import verify
from easd.engine.batch import Batch, Block, Clock, Group, StepRecord, Verified, read_blocks
from easd.engine.drafters import Draft, Drafter
from easd.engine.models.slots import SlotModel
from easd.engine.request import Request, Row
from easd.engine.sampling import Distributions
from easd.errors import ConfigError, InputError


class Engine:
    """Decodes the requests submitted to it in `num_rows` slots, with continuous batching.

    Requests in a batch may each have their own rule and processing, as long as their rules run the
    models as the engine's rule does.

    Args:
        target: scores drafted tokens.
        drafter: proposes them.
        rule: of the requests that name none.
        vocab_size: number of the target's tokens; rows that pad its embeddings are none.
        context_window: most tokens of a prompt and its text, or None.
        gamma: most draft tokens in a block.
        num_rows: texts decoded at once.
        noise: see `Settings.noise`.
    """

    def __init__(
        self,
        target: SlotModel,
        drafter: Drafter,
        rule: Rule,
        *,
        vocab_size: int,
        context_window: int | None,
        gamma: int,
        num_rows: int,
        coupling: Coupling | None = None,
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.rule = rule
        self.vocab_size = vocab_size
        self.context_window = context_window
        self.gamma = gamma
        self.num_rows = num_rows
        self.coupling: Coupling | None = coupling
        self._waiting: deque[Request] = deque()
        self._rows: list[Row] = []

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or being decoded."""
        return bool(self._rows or self._waiting)

    def submit(self, request: Request) -> None:
        """Queues a request; `step` admits it once a slot is free.

        Raises:
            ConfigError: Its rule runs the models in another way than the engine's.
            InputError: Its prompt is empty, has unknown token ids, or does not fit.
        """
        self._check_prompt(request)
        self._check_rule(request.rule or self.rule)
        self._waiting.append(request)

    @torch.inference_mode()
    def step(self) -> list[StepRecord]:
        """Admits waiting requests and advances every row by at least one token.

        Returns:
            A record for each rule and greediness among the rows.
        """
        clock = Clock()
        self._admit()
        batch = Batch(self._rows, self.rule, self.coupling)
        noise = self._noise(batch)
        clock.lap("prefill")
        draft = self.drafter.propose(
            batch.rows,
            batch.block_lengths(self.gamma),
            noise,
            bonus=self.rule.draft_at_bonus,
            raw=batch.rules_need_raw,
        )
        clock.lap("draft")
        logits = self._score(batch.rows, draft)
        clock.lap("target")
        processed = batch.process(logits, draft)
        verified = [self._verify(group, draft, processed, noise) for group in batch.groups]
        clock.lap("verify")
        committed = self._commit(draft, verified, processed.scores)
        clock.lap("commit")
        return [group.record(committed, clock.seconds) for group in verified]

    @torch.inference_mode()
    def cancel(self, request: Request) -> None:
        """Drops a request, waiting or being decoded, and frees its slot."""
        self._waiting = deque(r for r in self._waiting if r is not request)
        self._release([place for place, r in enumerate(self._rows) if r.request is request])

    def _check_prompt(self, request: Request) -> None:
        length = len(request.prompt)
        if not length:
            raise InputError(
                f"prompt {request.number} is empty; give at least one token to continue from"
            )
        if not 0 <= min(request.prompt) <= max(request.prompt) < self.vocab_size:
            raise InputError(
                f"prompt {request.number} has token ids from {min(request.prompt)} to "
                f"{max(request.prompt)} and the vocabulary {self.vocab_size} tokens; "
                "use the models' own tokenizer"
            )
        if self.context_window and length + request.max_new_tokens > self.context_window:
            raise InputError(
                f"prompt {request.number} has {length} tokens and max_new_tokens is "
                f"{request.max_new_tokens}, together more than the context window of "
                f"{self.context_window}; shorten the prompt or lower max_new_tokens"
            )

    def _check_rule(self, other: Rule) -> None:
        rule = self.rule
        if (other.models, other.draft_at_bonus) != (rule.models, rule.draft_at_bonus):
            raise ConfigError(
                f"the rules {rule_name(other)} and {rule_name(rule)} run the models in different "
                "ways; decode each by itself"
            )

    def _admit(self) -> None:
        first = len(self._rows)
        while self._waiting and len(self._rows) < self.num_rows:
            self._rows.append(Row.start(self._waiting.popleft()))
        admitted = self._rows[first:]
        if not admitted:
            return
        # The last token of a text is never cached: the next forward begins with it.
        self.target.prefill(first, [row.ids[:-1] for row in admitted])
        self.drafter.admit(first, admitted)

    def _noise(self, batch: Batch) -> Noise:
        device, jointly = self.target.device, batch.verified_jointly
        return Noise(
            keys=torch.tensor([row.key for row in batch.rows], device=device),
            start=torch.tensor(batch.starts, device=device),
            shared=self.coupling == "shared",
            fresh=None if jointly is None else torch.tensor(jointly, device=device),
        )

    def _score(self, rows: Sequence[Row], draft: Draft) -> Tensor:
        """The target's logits [B, K+1, V] after each row's text and each of its draft tokens."""
        last = torch.tensor([row.ids[-1:] for row in rows], device=self.target.device)
        logits = self.target.forward(torch.cat([last, draft.tokens], 1))
        return logits[..., : self.vocab_size]

    def _verify(self, group: Group, draft: Draft, target: Distributions, noise: Noise) -> Verified:
        step = group.step(draft, target)
        noise = group.narrow(noise)
        decision = verify(group.rule, step, noise, group.coupling)
        return Verified(group, step, noise, decision, read_blocks(step, decision))

    def _commit(
        self, draft: Draft, verified: Sequence[Verified], scores: Tensor | None
    ) -> list[list[int]]:
        """Extends each row by its block, truncates the caches, and frees the rows that ended."""
        blocks: dict[int, Block] = {}
        for group in verified:
            blocks |= zip(group.group.places, group.blocks, strict=True)
        committed, lengths, done = [], [], []
        for place, row in enumerate(self._rows):
            block = blocks[place]
            cached = len(row.ids) + block.num_accepted
            kept = row.extend(block.tokens)
            committed.append(block.tokens[:kept])
            row.counts.add(
                proposed=draft.counts[place],
                accepted=block.num_accepted,
                penalised=block.penalised,
                kept=kept,
            )
            if row.request.keep_scores:
                assert scores is not None, "they were asked for"
                row.scores.extend(scores[place, :kept].clone())
            lengths.append(cached)
            if row.finished:
                done.append(place)
        self.target.lengths[: len(lengths)] = lengths
        self.drafter.commit(lengths)
        self._release(done)
        return committed

    def _release(self, places: list[int]) -> None:
        """Frees rows; the last row moves into each gap, so that the rows in use stay together."""
        for place in sorted(places, reverse=True):
            last = len(self._rows) - 1
            if place != last:
                self._rows[place] = self._rows[last]
                self.target.move(last, place)
                self.drafter.move(last, place)
            self._rows.pop()
