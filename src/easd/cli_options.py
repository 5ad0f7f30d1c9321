"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

from typer import Option

MODELS = "Models"

Pair = Annotated[
    str | None,
    Option(
        "--pair",
        help="An embedded pair; see `easd pairs`.",
        show_default="smollm2",
        rich_help_panel=MODELS,
    ),
]
Target = Annotated[
    str | None,
    Option("--target", help="The target: a hub id or a folder.", rich_help_panel=MODELS),
]
Draft = Annotated[
    str | None, Option("--draft", help="The draft: a hub id or a folder.", rich_help_panel=MODELS)
]
Dtype = Annotated[
    str | None,
    Option(
        "--dtype",
        help="Of the weights: float32, bfloat16, float16 or float64.",
        show_default="float32 on a CPU, else the checkpoint's",
        rich_help_panel=MODELS,
    ),
]
Device = Annotated[
    str | None,
    Option(
        "--device",
        help="cpu, cuda, cuda:1 or mps.",
        show_default="a GPU where there is one",
        rich_help_panel=MODELS,
    ),
]
