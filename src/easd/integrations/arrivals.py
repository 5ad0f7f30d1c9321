"""Requests that arrive while others decode, gathered in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import anyio.to_thread

from easd.engine.engine import Engine
from easd.engine.request import Request, Row
from easd.engine.settings import Settings


class Arrivals:
    """Decodes for many tasks of an event loop at once.

    Requests whose settings are alike share an engine. Whoever waits for a text moves its engine on
    by a step whenever nobody else does, so there is no thread to start or stop.

    Args:
        make_engine: an empty engine for given settings.
    """

    def __init__(self, make_engine: Callable[[Settings], Engine]) -> None:
        self._make_engine = make_engine
        self._batches: dict[Settings, _Batch] = {}
        # The engines share their models, which can do one forward at a time.
        self._models = anyio.Lock()

    async def decode(self, requests: Sequence[Request], settings: Settings) -> list[Row]:
        """The requests' rows when they have ended.

        Args:
            requests: those of one caller.
            settings: what a batch must agree on, and nothing that is a request's own.

        Raises:
            EasdError: What the engine raises; everyone in the batch gets it.
        """
        batch = self._batches.get(settings)
        if batch is None:
            batch = self._batches[settings] = _Batch(self._make_engine(settings))
        batch.waiting += 1
        batch.engine.waiting.extend(requests)
        try:
            while True:
                async with self._models:
                    if batch.error is not None:
                        raise batch.error
                    if all(id(request) in batch.ended for request in requests):
                        return [batch.ended.pop(id(request)) for request in requests]
                    await anyio.to_thread.run_sync(batch.step)
        finally:
            batch.waiting -= 1
            # What cancelled callers left behind goes with the last one.
            over = not batch.waiting or batch.error is not None
            if over and self._batches.get(settings) is batch:
                del self._batches[settings]


class _Batch:
    """An engine, its ended rows by identity of their request, and how many callers wait for it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ended: dict[int, Row] = {}
        self.error: Exception | None = None
        self.waiting = 0

    def step(self) -> None:
        """One step of the engine; after an error its rows cannot be trusted any more."""
        try:
            records = self.engine.step()
        except Exception as error:
            self.error = error
        else:
            rows = [row for record in records for row in record.rows]
            self.ended |= {id(row.request): row for row in rows if row.finished}
