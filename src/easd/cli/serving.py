"""`easd serve`: arguments in, a server out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from easd.cli.options import Device, Draft, Dtype, Int8Draft, Pair, Target, chosen_models

app = typer.Typer()

_DEFAULTS, _SERVER = "Where a request says nothing", "Server"


@app.command()
def serve(
    *,
    pair: Pair = None,
    target: Target = None,
    draft: Draft = None,
    dtype: Dtype = None,
    int8_draft: Int8Draft = None,
    device: Device = None,
    config: Annotated[
        Path | None,
        Option(
            help="A YAML file with any settings of `easd generate`; options go before it.",
            rich_help_panel=_DEFAULTS,
        ),
    ] = None,
    rule: Annotated[
        str | None,
        Option(
            help="A rule, as for `easd generate`.",
            show_default="easd; speculative with --lossless-only",
            rich_help_panel=_DEFAULTS,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        Option(
            "--set",
            help="Any field of the rule, as field=value; may be repeated.",
            metavar="FIELD=VALUE",
            rich_help_panel=_DEFAULTS,
        ),
    ] = None,
    gamma: Annotated[
        int | None,
        Option(
            help="Draft tokens asked for in a block.", show_default="4", rich_help_panel=_DEFAULTS
        ),
    ] = None,
    drafter: Annotated[
        str | None,
        Option(help="model or prompt-lookup.", show_default="model", rich_help_panel=_DEFAULTS),
    ] = None,
    temperature: Annotated[
        float | None,
        Option(help="0 decodes greedily.", show_default="1.0", rich_help_panel=_DEFAULTS),
    ] = None,
    top_k: Annotated[
        int | None,
        Option(
            help="Keep the k most probable tokens, 0 all.",
            show_default="0",
            rich_help_panel=_DEFAULTS,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        Option(
            help="Keep the smallest set with this probability.",
            show_default="1.0",
            rich_help_panel=_DEFAULTS,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        Option(
            help="Most tokens of a text.",
            show_default="256, or what the context window leaves",
            rich_help_panel=_DEFAULTS,
        ),
    ] = None,
    host: Annotated[
        str, Option(help="The address to listen at.", rich_help_panel=_SERVER)
    ] = "127.0.0.1",
    port: Annotated[
        int, Option(help="The port to listen at; 0 takes any free one.", rich_help_panel=_SERVER)
    ] = 8000,
    api_key: Annotated[
        str | None,
        Option(
            help="What clients must show as their key.",
            envvar="EASD_API_KEY",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    lossless_only: Annotated[
        bool,
        Option(
            "--lossless-only",
            help="Refuse rules that change what the target would write.",
            rich_help_panel=_SERVER,
        ),
    ] = False,
    max_batch: Annotated[
        int | None,
        Option(help="Texts decoded at once.", show_default="8", rich_help_panel=_SERVER),
    ] = None,
    max_queue: Annotated[int, Option(help="Texts that may wait.", rich_help_panel=_SERVER)] = 256,
    max_body: Annotated[int, Option(help="Bytes of a request's body.", rich_help_panel=_SERVER)] = 2
    ** 20,
    max_model_len: Annotated[
        int | None,
        Option(
            help="Tokens of a prompt and its text.",
            show_default="the models' context window",
            rich_help_panel=_SERVER,
        ),
    ] = None,
) -> None:
    """Serve a pair over HTTP: OpenAI's API, and a page that shows the decoding."""
    from easd.config import load_config, parse_override
    from easd.serve.run import serve
    from easd.serve.serving import Serving

    overrides: dict[str, Any] = {
        **chosen_models(locals()),
        "rule": rule or ("speculative" if lossless_only and config is None else None),
        "gamma": gamma,
        "drafter": drafter,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "batch_size": max_batch,
    }
    overrides = {name: value for name, value in overrides.items() if value is not None}
    for text in set_ or []:
        name, value = parse_override(text)
        overrides[f"rule.{name}"] = value
    serving = Serving(
        config=load_config(config, overrides),
        lossless_only=lossless_only,
        api_key=api_key,
        max_queue=max_queue,
        max_body=max_body,
        max_model_len=max_model_len,
    )
    serve(serving, host, port)
