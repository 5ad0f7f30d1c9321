"""Limits on connections and request bodies: hosts, keys, sizes, and idle or stalled clients."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import resource
from collections.abc import Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from easd.errors import shown
from easd.serve.errors import Refusal

BODY_SECONDS = 30.0
HEAD_SECONDS = 15.0
STALLED_SECONDS = 30.0
_OWN_FILES = 64  # File descriptors reserved for everything but connections.
_GUARDED = ("/v1/", "/easd/")


class Guard:
    """Middleware that checks host, API key, and the size and duration of the body's upload.

    The host check is against DNS rebinding: a page of another site can have its name resolved to
    this machine and then read the server's answers, but the request's Host still names that site.

    Args:
        hosts: names for this server beside those of loopback; None admits any.
        api_key: bearer token required under /v1 and /easd, if any.
        max_body: maximum size of a body in bytes.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Iterable[str] | None,
        api_key: str | None,
        max_body: int,
        body_seconds: float,
    ) -> None:
        self._app = app
        self._hosts = None if hosts is None else {name.lower() for name in hosts}
        self._api_key = api_key
        self._max_body = max_body
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses the request, or passes it on with its body already read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            self._check_host(headers.get(b"host", b""))
            self._check_key(scope["path"], headers.get(b"authorization", b""))
            body = await self._read(headers.get(b"content-length"), receive)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
            return
        if body is None:
            return  # The client has disconnected.
        first: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Message:
            nonlocal first
            message, first = first, None
            return message or await receive()

        await self._app(scope, replay, send)

    def _check_host(self, asked: bytes) -> None:
        name = _host_name(asked.decode("latin-1"))
        if self._hosts is None or not name or name in self._hosts or is_loopback(name):
            return
        raise Refusal(
            403,
            f"this server is not called {shown(name)}; use the address that it printed, or start "
            "it with --allowed-host",
            code="wrong_host",
            headers={"Connection": "close"},
        )

    def _check_key(self, path: str, shown: bytes) -> None:
        if self._api_key is None or not path.startswith(_GUARDED):
            return
        scheme, _, key = shown.partition(b" ")
        wanted = self._api_key.encode()
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), wanted):
            raise Refusal(
                401,
                "the API key is missing or wrong; send 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
            )

    async def _read(self, announced: bytes | None, receive: Receive) -> bytes | None:
        if announced is not None and int(announced) > self._max_body:
            raise self._too_large()
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self._body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > self._max_body:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise Refusal(
                408,
                f"the body did not come within {self._body_seconds:g} seconds",
                headers={"Connection": "close"},
            ) from None

    def _too_large(self) -> Refusal:
        return Refusal(
            413,
            f"the body has more than {self._max_body} bytes; send less, or raise --max-body",
            code="body_too_large",
            headers={"Connection": "close"},
        )


class Connection(H11Protocol):
    """A connection that is closed if its client sends no request or does not read the response."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._timer: asyncio.TimerHandle | None = None
        self._writing_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.abort()
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing_timer = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing_timer is not None:
            self._writing_timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._writing_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        """Runs the timer between requests and stops it while one is served."""
        idle = self.cycle is None or self.cycle.response_complete
        if not idle and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif idle and self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)


def is_loopback(host: str) -> bool:
    """Returns whether a name or an address is a loopback one."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_name(host: str) -> str:
    """Returns the name or address in a Host header, without port, brackets and final dot."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")


def most_connections() -> int:
    """Returns the number of connections that there are file descriptors for."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OWN_FILES
