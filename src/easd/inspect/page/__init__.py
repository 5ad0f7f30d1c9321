"""The page with entropies and outcomes of tokens: a file from traces, or live from a server."""

from easd.inspect.page.assemble import content_security_policy, live_page
from easd.inspect.page.write import write_page

__all__ = ["content_security_policy", "live_page", "write_page"]
