"""The commands about speed: arguments in, sessions out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

app = typer.Typer()

_MODELS, _LOAD = "Models", "Load"


@app.command()
def plan(
    *,
    pair: Annotated[
        str | None, Option(help="An embedded pair; see `easd pairs`.", rich_help_panel=_MODELS)
    ] = None,
    target: Annotated[
        str | None,
        Option(
            help="The target: a hub id, a folder or a config.json; its weights are not needed.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    draft: Annotated[
        str | None, Option(help="The draft, likewise.", rich_help_panel=_MODELS)
    ] = None,
    on: Annotated[
        str,
        Option(
            help="A device, such as h100 or h100:8; a YAML file that describes one; or here, which "
            "measures this machine.",
        ),
    ] = "here",
    price: Annotated[float | None, Option(help="Of one device for an hour.")] = None,
    trace: Annotated[
        Path | None,
        Option(help="A run of the pair: how many draft tokens were kept.", rich_help_panel=_LOAD),
    ] = None,
    acceptance: Annotated[
        float | None,
        Option(
            help="Without a run: the share of draft tokens that are kept.", rich_help_panel=_LOAD
        ),
    ] = None,
    texts: Annotated[
        list[int] | None,
        Option(
            help="Texts at once; may be repeated.",
            show_default="1, 8, 32, 128, 512",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    gamma: Annotated[
        list[int] | None,
        Option(
            help="Draft tokens of a block; may be repeated.",
            show_default="1, 3, 5, 8",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    context: Annotated[
        int, Option(help="Tokens of a text halfway through.", rich_help_panel=_LOAD)
    ] = 1024,
) -> None:
    """Forecast tokens a second and their price on other hardware, and when not to draft."""
    from easd.sessions.plan import Plan

    Plan(
        pair=pair,
        target=target,
        draft=draft,
        on=on,
        price=price,
        trace=trace,
        acceptance=acceptance,
        texts=tuple(texts or (1, 8, 32, 128, 512)),
        gammas=tuple(gamma or (1, 3, 5, 8)),
        context=context,
    ).run()
