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

    There is no background thread to start or stop: whichever task waits for a text runs the next
    step of its engine.

    Args:
        make_engine: makes an idle engine for given settings.
    """

    def __init__(self, make_engine: Callable[[Settings], Engine]) -> None:
        self._make_engine = make_engine
        self._batches: dict[Settings, _Shared] = {}
        # The engines share their models, which can do one forward at a time.
        self._models = anyio.Lock()

    async def decode(self, requests: Sequence[Request], settings: Settings) -> list[Row]:
        """Returns the rows of `requests` once all of them have finished.

        Args:
            requests: those of one task.
            settings: what all requests of an engine have in common, and nothing else.

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
            # Requests of cancelled tasks go with the engine, when nobody waits for it any more.
            over = not shared.num_tasks or shared.error is not None
            if over and self._batches.get(settings) is shared:
                del self._batches[settings]


class _Shared:
    """An engine, its finished rows by the identity of their request, and its number of tasks."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.finished: dict[int, Row] = {}
        self.error: Exception | None = None
        self.num_tasks = 0

    def step(self) -> None:
        """Runs one step; after an error none of the engine's rows can be trusted."""
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
