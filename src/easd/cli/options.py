"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from typer import Option

MODELS = "Models"
MODEL_SETTINGS = ("pair", "target", "draft", "dtype", "int8_draft", "device")

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
Int8Draft = Annotated[
    bool | None,
    Option(
        "--int8-draft/--no-int8-draft",
        help="Round the draft's matrices to int8: faster on a CPU, for up to some ten texts at "
        "once.",
        show_default="no",
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


def chosen_models(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of models that were given, among all options of a command."""
    return {name: options[name] for name in MODEL_SETTINGS if options[name] is not None}
