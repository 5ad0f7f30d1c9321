"""What is checked before a request is read: its key, the size of its body, and its patience."""

from __future__ import annotations

import asyncio
import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from easd.serve.errors import Refusal

BODY_SECONDS = 30.0
_GUARDED = ("/v1/", "/easd/")


class Guard:
    """Lets in requests that show the key and whose whole body comes in time and size.

    Args:
        app: what is behind.
        api_key: to be shown as a bearer token under /v1 and /easd, if anything.
        max_body: most bytes of a body.
        body_seconds: how long a body may take.
    """

    def __init__(
        self, app: ASGIApp, *, api_key: str | None, max_body: int, body_seconds: float
    ) -> None:
        self._app = app
        self._api_key = api_key
        self._max_body = max_body
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or hands the request on with its body read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            self._check_key(scope["path"], headers.get(b"authorization", b""))
            body = await self._read(headers.get(b"content-length"), receive)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
            return
        if body is None:
            return  # The client is gone.
        first: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Message:
            nonlocal first
            message, first = first, None
            return message or await receive()

        await self._app(scope, replay, send)

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
