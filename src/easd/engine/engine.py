"""Speculative decoding of a batch in steps: propose, score, verify, commit, record."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter, thread_time

import torch
from torch import Tensor

from easd.core.couplings import Coupling
from easd.core.noise import Noise
from easd.core.rules import Rule, rule_name
from easd.engine.admission import Rows
from easd.engine.auto_gamma import AutoGamma
from easd.engine.batch import Batch, Block, Clock, Failure, StepRecord, Verified, outcomes
from easd.engine.drafters import Draft, Drafter
from easd.engine.models.graphs import Graphs
from easd.engine.models.slots import SlotModel
from easd.engine.models.upload import upload
from easd.engine.request import Request, Row
from easd.errors import ConfigError, InputError


class Engine:
    """Decodes the requests submitted to it in `num_rows` slots, with continuous batching.

    Requests in a batch may each have their own rule and processing, as long as their rules run the
    models as the engine's rule does.

    Args:
        target: scores draft tokens.
        drafter: proposes them.
        rule: of the requests that name none.
        vocab_size: number of the target's tokens, without rows that pad its embeddings.
        context_window: maximum number of tokens of a prompt and its text, or None.
        gamma: maximum number of draft tokens in a block.
        auto: chooses that number for each step instead.
        num_rows: texts decoded at once.
        coupling: of the requests that name none; None for their rules' defaults.
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
        auto: AutoGamma | None = None,
        num_rows: int,
        coupling: Coupling | None = None,
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.rule = rule
        self.vocab_size = vocab_size
        self.context_window = context_window
        self.gamma = gamma
        self.auto = auto
        self.num_rows = num_rows
        self.coupling: Coupling | None = coupling
        self._waiting: deque[Request] = deque()
        self._unrecorded: dict[str, float] = {}  # Seconds of steps without a record.
        # Other processes do not disturb processor time, which knows nothing of a GPU.
        self._now: Callable[[], float] = (
            thread_time if target.device.type == "cpu" else perf_counter
        )
        self._rows = Rows(target, drafter, self._now)
        self._verifications = Graphs()

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or being decoded."""
        return bool(self._rows or self._waiting)

    def close(self) -> None:
        """Leaves recorded graphs to the next engine of the same models; this one has ended."""
        for model in (self.target, *self.drafter.models):
            model.leave()

    def submit(self, request: Request) -> None:
        """Queues a request; `step` admits it once a slot is free.

        Raises:
            ConfigError: Its rule runs the models differently from the engine's.
            InputError: Its prompt is empty, has unknown token ids, or does not fit.
        """
        self._check_prompt(request)
        self._check_rule(request)
        self._waiting.append(request)

    @torch.inference_mode()
    def step(self, prefill_tokens: int | None = None) -> list[StepRecord | Failure]:
        """Caches prompts, and advances every row with a cached prompt by at least one token.

        Args:
            prefill_tokens: maximum number of prompt tokens to cache first, padding included, which
                bounds the delay of decoding rows; None caches all.

        Returns:
            A record for each group of rows that one call verified, and the requests that failed:
            their processors, criteria or rule raised, or their logits are NaN.
        """
        clock = Clock(self._unrecorded)
        for model in (self.target, *self.drafter.models):
            model.notice_changes()
        self._admit()
        self._rows.prefill(prefill_tokens)
        clock.lap("prefill")
        batch = Batch(self._rows.decoding, self.rule, self.coupling, self._verifications)
        self._unrecorded = {} if batch.rows else clock.seconds
        if not batch.rows:
            return []
        begun, behind = self._now(), self._behind(batch.rows)
        asked = batch.block_lengths(self._gamma(len(batch.rows), behind))
        noise = self._noise(batch)
        draft = self.drafter.propose(
            batch.rows,
            asked,
            noise,
            bonus=self.rule.draft_at_bonus,
            raw=batch.rules_need_raw,
        )
        clock.lap("draft")
        logits = self._score(batch.rows, draft)
        clock.lap("target")
        processed = batch.process(logits, draft)
        verified = batch.verify(draft, processed, noise)
        clock.lap("verify")
        if max(asked) or self.rule.draft_at_bonus:
            for row, start in zip(batch.rows, batch.starts, strict=True):
                row.num_read = start
        committed = self._commit(batch.rows, draft, verified, processed.scores)
        clock.lap("commit")
        if self.auto is not None:
            blocks = outcomes(asked, verified, committed)
            self.auto.observe(
                len(batch.rows),
                blocks,
                self._now() - begun,
                behind=behind,
                reading=self._rows.take_draft_seconds(),
            )
        records = [group.record(committed, clock.seconds) for group in verified]
        failures = [Failure(row, row.error) for row in batch.rows if row.error is not None]
        return [*filter(None, records), *failures]

    @torch.inference_mode()
    def cancel(self, request: Request) -> None:
        """Drops a request, queued or being decoded, and frees its slot."""
        self._waiting = deque(r for r in self._waiting if r is not request)
        self._rows.release([at for at, row in enumerate(self._rows) if row.request is request])

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

    def _check_rule(self, request: Request) -> None:
        rule, other = self.rule, request.rule or self.rule
        if (other.models, other.draft_at_bonus) != (rule.models, rule.draft_at_bonus):
            raise ConfigError(
                f"the rules {rule_name(other)} and {rule_name(rule)} run the models in different "
                "ways; decode each by itself"
            )
        if request.coupling == "shared" and self.coupling != "shared":
            raise ConfigError(
                "coupling = 'shared' draws draft tokens in another way than the rest of the batch; "
                "decode such requests by themselves"
            )

    def _admit(self) -> None:
        while self._waiting and len(self._rows) < self.num_rows:
            row = Row.start(self._waiting.popleft())
            if self.auto is not None and self.coupling != "shared":
                row.key = self.auto.fresh_key(row.key)
            self._rows.add(row, drafted=self.auto is None or not self.auto.paused)

    def _gamma(self, num_rows: int, behind: int) -> int:
        return self.gamma if self.auto is None else self.auto.choose(num_rows, behind)

    def _behind(self, rows: Sequence[Row]) -> int:
        """The largest number of tokens of a row's text that the draft has not read, for `auto`."""
        if self.auto is None or not self.drafter.models:
            return 0
        return max(len(row.ids) - row.num_read for row in rows)

    def _noise(self, batch: Batch) -> Noise:
        device, fresh = self.target.device, batch.verified_jointly
        if self.auto is not None:  # It has seen which tokens earlier blocks discarded.
            fresh = [True] * len(batch.rows)
        return Noise(
            keys=upload([row.key for row in batch.rows], device),
            start=upload(batch.starts, device),
            shared=self.coupling == "shared",
            fresh=None if fresh is None else upload(fresh, device),
        )

    def _score(self, rows: Sequence[Row], draft: Draft) -> Tensor:
        """The target's logits [B, K+1, V] after each row's text and each of its draft tokens."""
        last = upload([row.ids[-1:] for row in rows], self.target.device)
        logits = self.target.forward(torch.cat([last, draft.tokens], 1))
        return logits[..., : self.vocab_size]

    def _commit(
        self,
        rows: Sequence[Row],
        draft: Draft,
        verified: Sequence[Verified],
        scores: Tensor | None,
    ) -> list[list[int]]:
        """Extends each row by its block, truncates the caches and frees finished rows."""
        committed: list[list[int]] = [[] for _ in rows]
        lengths = self.target.lengths[: len(rows)]
        for group in verified:
            for place, block in zip(group.group.places, group.blocks, strict=True):
                if isinstance(block, Block) and rows[place].error is None:
                    lengths[place] = len(rows[place].ids) + block.num_accepted
                    committed[place] = self._extend(rows[place], block, draft.counts[place])
        for place, row in enumerate(rows):
            if row.request.keep_scores and row.error is None:
                assert scores is not None, "scores were asked for"
                row.scores.extend(scores[place, : len(committed[place])].clone())
        self.target.lengths[: len(lengths)] = lengths
        self.drafter.commit(lengths)
        self._rows.release([place for place, row in enumerate(rows) if row.finished])
        return committed

    def _extend(self, row: Row, block: Block, num_draft_tokens: int) -> list[int]:
        """Appends a block to a row's text; returns the tokens kept."""
        try:
            kept = row.extend(block.tokens)
        except Exception as error:  # of a stopping criterion
            row.fail(error)
            return []
        row.counts.add(
            proposed=num_draft_tokens,
            accepted=block.num_accepted,
            penalised=block.penalised,
            kept=kept,
        )
        return block.tokens[:kept]
