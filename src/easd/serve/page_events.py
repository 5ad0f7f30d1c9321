"""One text for the page: the rows of its trace, step by step as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np

from easd.config import RunConfig
from easd.core.step import Judgement
from easd.engine.engine import StepRecord
from easd.engine.fingerprint import signals_of
from easd.engine.pair import Pair
from easd.engine.record import Recorder, outcomes, token_columns, tokens_table
from easd.engine.trace import sample_counts
from easd.runs import describe
from easd.runs.schema import TOP
from easd.runs.texts import TokenTexts
from easd.serve.answering import event, updates
from easd.serve.errors import Refusal
from easd.serve.scheduler import Job
from easd.serve.writing import Writing

_Seen = tuple[list[dict[str, Any]], dict[int, str]]

_KEYS = ["run", "sample", "request"]  # The same in every row of one text.


class Decoding:
    """One text as a trace that is told while it grows.

    Args:
        pair: the models.
        config: what is decoded, with the request's own settings.
        provenance: of the run, as `easd.engine.fingerprint.provenance` gives it.
        texts: what tokens read like.
    """

    def __init__(
        self, pair: Pair, config: RunConfig, provenance: dict[str, Any], texts: TokenTexts
    ) -> None:
        self._pair = pair
        self._config = config
        self._texts = texts
        self._top_n = getattr(config.settings.rule, "top_n", TOP)
        self._recorder = Recorder(config.settings.rule)
        self._steps = 0
        self._run = describe(
            "trace",
            config.to_dict(),
            run=uuid4().hex[:12],
            signals=signals_of(config.settings),
            **provenance,
        )

    def observe(self, record: StepRecord, place: int) -> _Seen:
        """The rows of a step and what their tokens read like; called in the decoding thread."""
        alone = only(record, place)
        names = outcomes(alone)
        self._recorder.add(alone)
        found = token_columns(alone, names, top_n=self._top_n)
        size = len(found["position"])
        found |= {"sample": np.zeros(size, int), "step": np.full(size, self._steps)}
        self._steps += 1
        texts = self._texts.of(found)
        table = tokens_table(found, texts, run=self._run["run"], top_n=self._top_n)
        return table.drop_columns(_KEYS).to_pylist(), texts

    async def events(self, job: Job) -> AsyncIterator[bytes]:
        """Server-sent events: the run, the rows of every step, and the end."""
        writing = Writing(self._pair.tokenizer, job.settings.stop)
        known: set[int] = set()
        num_tokens = 0
        try:
            yield event({"type": "run", "run": self._run})
            async for update in updates(job):
                rows, texts = update.seen
                new = {str(token): text for token, text in texts.items() if token not in known}
                known |= texts.keys()
                num_tokens += len(update.tokens)
                writing.add(update.tokens, update.finished)
                yield event({"type": "rows", "tokens": rows, "vocabulary": new})
            yield event(
                {
                    "type": "end",
                    "sample": self._sample(job, writing),
                    "summary": self._recorder.total.summary(),
                }
            )
        except Refusal as refusal:
            yield event({"type": "error", **refusal.body.model_dump()})

    def _sample(self, job: Job, writing: Writing) -> dict[str, Any]:
        """The text's row of the samples table."""
        (request,) = job.requests
        total = self._recorder.total
        return {
            "run": self._run["run"],
            "sample": 0,
            "task": None,
            "item": None,
            "prompt": self._pair.tokenizer.decode(list(request.prompt)),
            "text": writing.text,
            "answer": None,
            "correct": None,
            **sample_counts(self._recorder.rows[request.number]),
            "finish_reason": writing.finished,
            "seconds": sum(total.seconds.values()),
        }


def only(record: StepRecord, place: int) -> StepRecord:
    """A step narrowed to one of its texts."""
    row = slice(place, place + 1)
    judgement, step = record.decision.judgement, record.step
    named = {
        name: None if values is None else values[row]
        for name, values in (
            ("raw_draft_probs", step.raw_draft_probs),
            ("raw_target_probs", step.raw_target_probs),
            ("greedy", step.greedy),
        )
    }
    return replace(
        record,
        rows=record.rows[row],
        starts=record.starts[row],
        committed=record.committed[row],
        step=replace(
            step,
            draft_tokens=step.draft_tokens[row],
            num_draft_tokens=step.num_draft_tokens[row],
            draft_probs=step.draft_probs[row],
            target_probs=step.target_probs[row],
            **named,
        ),
        decision=replace(
            record.decision,
            num_accepted=record.decision.num_accepted[row],
            next_token=record.decision.next_token[row],
            penalised=record.decision.penalised[row],
            judgement=Judgement(
                accept_prob=judgement.accept_prob[row],
                penalty_prob=judgement.penalty_prob[row],
                signals={name: values[row] for name, values in judgement.signals.items()},
            ),
        ),
        noise=replace(record.noise, keys=record.noise.keys[row], start=record.noise.start[row]),
    )
