"""Error responses in OpenAI's format."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from easd.errors import ConfigError, EasdError, InputError, RuleError, one_line, shown

_log = logging.getLogger("easd.serve")

_LONGEST_PART = 60  # Characters of a name that an error repeats.
_CLIENTS = (ConfigError, InputError, RuleError)

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ErrorBody(BaseModel):
    """The error in a response."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every error response."""

    error: ErrorBody


class Refusal(Exception):
    """An error to send to the client.

    Args:
        status: HTTP status.
        message: one line for the client: value, limit, way out.
        param: the field of the request that is at fault.
        code: machine-readable name of the error.
        headers: additional headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        message = one_line(message)
        super().__init__(message)
        self.status = status
        self.body = ErrorResponse(
            error=ErrorBody(
                message=message,
                type=_TYPES.get(
                    status, "invalid_request_error" if status < 500 else "server_error"
                ),
                param=param,
                code=code,
            )
        )
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: Exception) -> Refusal:
        """Returns the refusal for any error, without details of internal ones."""
        if isinstance(error, Refusal):
            return error
        if isinstance(error, _CLIENTS):
            return cls(400, str(error))
        _log.error("a request failed", exc_info=error)
        if isinstance(error, EasdError):
            return cls(500, str(error))
        return cls(500, "the server failed at this request; its log says why")

    def response(self) -> Response:
        """Returns the HTTP response."""
        return Response(
            to_json(self.body.model_dump()),
            self.status,
            headers=self.headers,
            media_type="application/json",
        )


def to_json(value: Any) -> bytes:
    """Encodes JSON as UTF-8; lone surrogates, which UTF-8 cannot encode, become escapes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", errors="backslashreplace")


def install_handlers(app: FastAPI) -> None:
    """Makes the app answer every error with a `Refusal`."""

    async def refused(request: Request, error: Exception) -> Response:
        return Refusal.of(error).response()

    async def misread(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _unfit(error.errors()).response()

    async def unrouted(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = error.detail
        if error.status_code == 400:
            message = "the body is not JSON that can be read"
        elif error.status_code in (404, 405):
            message = f"there is no {request.method} {shown(request.url.path)}; see /openapi.json"
        return Refusal(error.status_code, message, headers=error.headers).response()

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(EasdError, refused)
    app.add_exception_handler(RequestValidationError, misread)
    app.add_exception_handler(HTTPException, unrouted)
    app.add_exception_handler(Exception, refused)


def _unfit(errors: Sequence[Any]) -> Refusal:
    """Returns the refusal for the first error in a body."""
    first = errors[0]
    kind, where = first["type"], [str(part) for part in first["loc"] if part != "body"]
    # Parts in angle brackets only name the type that a union chose.
    where = [_shorten(part) for part in where if not re.fullmatch("<[a-z_]+>", part)]
    param = ".".join(where) or None
    if kind == "json_invalid":
        return Refusal(400, f"the body is not JSON ({first['ctx']['error']})", code="invalid_json")
    if kind == "extra_forbidden":
        return Refusal(
            400,
            f"{shown(param)} is not a field that this server honours; leave it out, or see "
            "/openapi.json for those it does",
            param=param,
            code="unknown_field",
        )
    if kind == "missing":
        return Refusal(400, f"{param or 'the body'} is missing", param=param, code="missing_field")
    reason = first["msg"].removeprefix("Value error, ")
    return Refusal(
        400,
        f"{param or 'the body'} does not fit: {reason[0].lower()}{reason[1:]}",
        param=param,
        code="invalid_value",
    )


def _shorten(part: str) -> str:
    return part if len(part) <= _LONGEST_PART else f"{part[:_LONGEST_PART]}..."
