"""Batched decoding for concurrent tasks of one event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import anyio.to_thread

from easd.engine.batch import StepRecord
from easd.engine.engine import Engine
from easd.engine.request import Request, Row
from easd.engine.settings import Settings


class AsyncEngine:
    """Decodes requests of many tasks together; requests with equal settings share an engine.

    It has no background thread: any task that waits for a text runs the next step of its engine.
    """

    def __init__(self, make_engine: Callable[[Settings], Engine]) -> None:
        self._make_engine = make_engine
        self._batches: dict[Settings, _Shared] = {}
        # The engines share their models, which can do one forward at a time.
        self._models = anyio.Lock()

    async def decode(self, requests: Sequence[Request], settings: Settings) -> list[Row]:
        """Returns the rows of one task's `requests` once all of them have finished.

        `settings` must hold only what all requests of an engine have in common.

        Raises:
            Exception: A request does not fit or fails, or a step of its engine failed.
        """
        shared = self._batches.get(settings)
        if shared is None:
            shared = self._batches[settings] = _Shared(self._make_engine(settings))
        shared.num_tasks += 1
        try:
            for request in requests:
                shared.engine.submit(request)
            while True:
                async with self._models:
                    if shared.error is not None:
                        raise shared.error
                    if all(id(request) in shared.finished for request in requests):
                        rows = [shared.finished.pop(id(request)) for request in requests]
                        for row in rows:
                            if row.error is not None:
                                raise row.error
                        return rows
                    await anyio.to_thread.run_sync(shared.step)
        finally:
            shared.num_tasks -= 1
            # An engine that no task waits for is dropped, and with it requests of cancelled tasks.
            over = not shared.num_tasks or shared.error is not None
            if over and self._batches.get(settings) is shared:
                del self._batches[settings]


class _Shared:
    """An engine, its finished rows by their request's identity, and its number of tasks."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.finished: dict[int, Row] = {}
        self.error: Exception | None = None
        self.num_tasks = 0

    def step(self) -> None:
        """Runs one step, or stores its error, which corrupts all rows of the engine."""
        try:
            found = self.engine.step()
        except Exception as error:
            self.error = error
        else:
            rows = [
                row
                for one in found
                for row in (one.rows if isinstance(one, StepRecord) else [one.row])
            ]
            self.finished |= {id(row.request): row for row in rows if row.finished}
