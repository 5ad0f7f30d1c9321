"""`easd eval`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from easd.cli.grid_options import Config, GridOptions, OfGrid, Out

OfEndpoint = partial(Parameter, group=Group("Endpoint", sort_key=10))


def command(
    config: Config = None,
    /,
    *,
    asked: GridOptions | None = None,
    system: Annotated[
        list[str] | None,
        OfGrid(
            metavar="RULE[:FIELD=VALUE,...]",
            show_default="target, speculative, easd; with --endpoint served",
        ),
    ] = None,
    endpoint: Annotated[str | None, OfEndpoint(metavar="URL")] = None,
    model: Annotated[str | None, OfEndpoint(show_default="its only one")] = None,
    api_key_env: Annotated[str | None, OfEndpoint(metavar="NAME")] = None,
    dialect: Annotated[
        str | None, OfEndpoint(show_default="whichever the server understands")
    ] = None,
    concurrency: Annotated[int | None, OfEndpoint(show_default="16")] = None,
    out: Out = Path("runs/eval"),
) -> None:
    """Decode and grade tasks with several systems.

    Every system decodes the same items with the same random numbers (`--coupling shared`), so that
    two of them differ only where their rules acted. The target at temperature 0.5, and greedy, are
    always among them. A run that was stopped continues where it was.

    With --endpoint a server decodes. Noise is then independent, and no systems are added.

    Args:
        system: A rule with fields and settings, such as easd:tau_h=1.2,coupling=maximal, or
            rsd:delta=0.7. With --endpoint also `served`: the server's default. May be repeated.
        endpoint: Evaluate this OpenAI-compatible server, such as http://127.0.0.1:8000/v1, instead
            of a pair.
        model: The server's name for the model.
        api_key_env: The environment variable that holds the server's key.
        dialect: How a request names its rule: easd (easd serve) or vllm (the plugin).
        concurrency: Number of concurrent requests.
    """
    server = {"url": endpoint, "model": model, "api_key_env": api_key_env, "dialect": dialect}
    server |= {"concurrency": concurrency}
    given: dict[str, Any] = {
        f"endpoint.{name}": value for name, value in server.items() if value is not None
    }
    if system:
        given["systems"] = system
    (asked or GridOptions()).run(config, out, given)
