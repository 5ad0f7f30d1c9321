"""Events of /easd/decode: the rows of a text's trace, step by step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import numpy as np

from easd.config import RunConfig
from easd.engine.batch import StepRecord
from easd.engine.pair import Pair
from easd.engine.record import Recorder, outcomes, signals_of, token_columns, tokens_table, top_n_of
from easd.engine.trace import sample_counts
from easd.runs import describe
from easd.runs.texts import TokenTexts
from easd.serve.detokenizer import Detokenizer
from easd.serve.errors import Refusal
from easd.serve.scheduler import Job, updates
from easd.serve.streaming import event

_Seen = tuple[list[dict[str, Any]], dict[int, str]]

_KEYS = ["run", "sample", "request"]  # Equal in all rows of one text.


class TraceEvents:
    """Streams the trace of one text while it is being decoded.

    Args:
        config: the server's, with the request's settings.
        provenance: from `easd.engine.pair.provenance`.
    """

    def __init__(
        self, pair: Pair, config: RunConfig, provenance: dict[str, Any], texts: TokenTexts
    ) -> None:
        self._pair = pair
        self._texts = texts
        self._top_n = top_n_of(config.settings.rule)
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
        """Returns a step's trace rows and their tokens' texts; runs in the decoding thread."""
        alone = record.of([place])
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
        """Yields server-sent events: `run`, `rows` for every step, and `end`."""
        detokenizer = Detokenizer(self._pair.tokenizer, job.settings.stop)
        known: set[int] = set()
        num_tokens = 0
        try:
            yield event({"type": "run", "run": self._run})
            async for update in updates(job):
                rows, texts = update.seen
                new = {str(token): text for token, text in texts.items() if token not in known}
                known |= texts.keys()
                num_tokens += len(update.tokens)
                detokenizer.add(update.tokens, update.finished)
                yield event({"type": "rows", "tokens": rows, "vocabulary": new})
            summary = self._recorder.total.summary()
            yield event(
                {"type": "end", "sample": self._sample(job, detokenizer), "summary": summary}
            )
        except Refusal as refusal:
            yield event({"type": "error", **refusal.body.model_dump()})

    def _sample(self, job: Job, detokenizer: Detokenizer) -> dict[str, Any]:
        """The text's row of the samples table."""
        (request,) = job.requests
        total = self._recorder.total
        return {
            "run": self._run["run"],
            "sample": 0,
            "task": None,
            "item": None,
            "prompt": self._pair.tokenizer.decode(list(request.prompt)),
            "text": detokenizer.text,
            "answer": None,
            "correct": None,
            **sample_counts(self._recorder.rows[request.number]),
            "finish_reason": detokenizer.finished,
            "seconds": sum(total.seconds.values()),
        }
