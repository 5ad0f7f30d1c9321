"""The page at `/`."""

from __future__ import annotations

from starlette.responses import Response

from easd.inspect.page import content_security_policy, live_page


async def page() -> Response:
    """The page, which may run its own inline code and reach this server, and nothing else."""
    headers = {
        "Content-Security-Policy": content_security_policy(),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return Response(live_page(), media_type="text/html; charset=utf-8", headers=headers)
