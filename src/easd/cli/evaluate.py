"""`easd eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from easd.cli.endpoint_options import OfEndpoint, ServerOptions, given_of
from easd.cli.grid_options import GridOptions, OfGrid, Out
from easd.cli.options import Config


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
    server: ServerOptions | None = None,
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
    """
    given: dict[str, Any] = {} if endpoint is None else {"endpoint.url": endpoint}
    given |= {f"endpoint.{name}": value for name, value in given_of(server).items()}
    if system:
        given["systems"] = system
    (asked or GridOptions()).run(config, out, given)
