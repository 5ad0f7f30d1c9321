"""One HTML page from its parts; nothing on it is fetched from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from easd.runs.schema import TOKENS

# In the order in which they use each other.
_MODULES = (
    "dom",
    "visible",
    "gate",
    "model",
    "words",
    "summary",
    "card",
    "overview",
    "lines",
    "moves",
    "panel",
    "live",
    "main",
)

_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


def page(data: dict[str, Any], *, connect: str) -> str:
    """The page with its data.

    Args:
        data: see `easd.inspect.page.data`; a page without `runs` asks its server for them.
        connect: a source that the page may send requests to, in the words of a content security
            policy.
    """
    parts = {
        "policy": _policy(connect),
        "style": _style(),
        "script": _script(),
        "data": _embedded({**data, "definitions": _definitions()}),
    }
    return Template(_part("page.html")).substitute(parts)


@cache
def live_page() -> str:
    """The page that a server shows at `/`; it decodes through `/easd/decode`."""
    return page({}, connect="'self'")


def content_security_policy() -> str:
    """The header to send with `live_page`: the page's own script and style, and this server."""
    return _policy(connect="'self'") + "; frame-ancestors 'none'"


@cache
def _policy(connect: str) -> str:
    allowed = {
        "default-src": "'none'",
        "connect-src": connect,
        "img-src": "data:",
        "script-src": _digest(_script()),
        "style-src": _digest(_style()),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {source}" for name, source in allowed.items())


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _script() -> str:
    """All modules as one: their names are distinct, so imports and exports fall away."""
    sources = (_part(f"{name}.js") for name in _MODULES)
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", source)) for source in sources)


@cache
def _style() -> str:
    return _part("page.css")


def _part(name: str) -> str:
    return (files("easd.inspect.page") / "templates" / name).read_text(encoding="utf-8")


def _embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end the element it stands in, in ASCII alone."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _definitions() -> list[tuple[str, str, str]]:
    """Name, unit and definition of each column of the tokens table."""
    described = [(field.name, field.metadata) for field in TOKENS if field.metadata]
    return [
        (name, about[b"unit"].decode(), about[b"definition"].decode()) for name, about in described
    ]
