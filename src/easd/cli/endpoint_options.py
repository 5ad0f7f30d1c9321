"""Options of commands that can have a server decode."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

from cyclopts import Group, Parameter

OfEndpoint = partial(Parameter, group=Group("Endpoint", sort_key=10))


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How a server is asked.

    Attributes:
        model: The server's name for the model.
        api_key_env: The environment variable that holds the server's key.
        dialect: How a request names its rule: easd (easd serve) or vllm (the plugin).
        concurrency: Number of concurrent requests.
    """

    model: Annotated[str | None, OfEndpoint(show_default="its only one")] = None
    api_key_env: Annotated[str | None, OfEndpoint(metavar="NAME")] = None
    dialect: Annotated[str | None, OfEndpoint(show_default="whichever the server understands")] = (
        None
    )
    concurrency: Annotated[int | None, OfEndpoint(show_default="16")] = None


def given_of(server: ServerOptions | None) -> dict[str, Any]:
    """Returns the options that were given, by name."""
    found = {} if server is None else asdict(server)
    return {name: value for name, value in found.items() if value is not None}
