"""Server-sent events, which stop when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from easd.serve.errors import to_json

T = TypeVar("T")


def event(value: object) -> bytes:
    """Encodes one server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


class EventStream(Response):
    """Response of encoded server-sent events that stops when the client disconnects.

    `at_end` is called however the stream ends.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], request: Request, at_end: Callable[[], None]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._request = request
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(self._request, self._send(send))
        finally:
            self._at_end()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for chunk in self._events:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Returns the result of `work`, or cancels it and returns None if the client disconnects."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
