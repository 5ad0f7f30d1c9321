"""Assembles one HTML page that loads nothing from elsewhere."""

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

# Each after the modules that it imports.
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
        data: see `easd.inspect.page.data`; a page without `runs` decodes through its server.
        connect: value of connect-src in the content security policy.
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
    """The header to send with `live_page`."""
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
    """All modules as one, without imports and exports, since their names are distinct."""
    sources = (_part(f"{name}.js") for name in _MODULES)
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", source)) for source in sources)


@cache
def _style() -> str:
    return _part("page.css")


def _part(name: str) -> str:
    return (files("easd.inspect.page") / "templates" / name).read_text(encoding="utf-8")


def _embedded(data: dict[str, Any]) -> str:
    """ASCII JSON that cannot end the script element around it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _definitions() -> list[tuple[str, str, str]]:
    """Name, unit and definition of each column of the tokens table."""
    return [
        (field.name, *(field.metadata[key].decode() for key in (b"unit", b"definition")))
        for field in TOKENS
    ]
