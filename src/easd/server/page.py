"""The page at `/`."""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.responses import Response

from easd.server.errors import Refusal

_INLINE = re.compile(r"<(script|style)\b[^>]*>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)


async def page() -> Response:
    """The page, which may run its own inline code and reach this server, and nothing else."""
    try:
        from easd.inspect.page import live_page
    except ImportError:
        raise Refusal(404, "there is no page; /openapi.json describes the API") from None
    html = live_page()
    headers = {
        "Content-Security-Policy": policy(html),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)


def policy(html: str) -> str:
    """A Content-Security-Policy under which exactly the page's own inline code runs."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, code in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        hashes[kind.lower()].append(f"'sha256-{digest}'")
    parts = [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        *(f"{kind}-src {' '.join(found)}" for kind, found in hashes.items() if found),
    ]
    return "; ".join(parts)
