"""Whether this vLLM has the functions that the plugin builds on, with the arguments it knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from easd.errors import ConfigError


def check_signatures(known: Mapping[str, tuple[Callable[..., Any] | None, str]]) -> None:
    """Compares functions with the first arguments that are built on.

    Args:
        known: name -> the function, None where it is missing, and its first arguments' names
            separated by spaces.

    Raises:
        ConfigError: A function is missing, or takes other arguments.
    """
    for name, (function, wanted) in known.items():
        found = () if function is None else tuple(inspect.signature(function).parameters)
        expected = tuple(wanted.split())
        if function is None or found[: len(expected)] != expected:
            raise ConfigError(
                f"this vLLM's {name}({', '.join(found)}) is not the one easd builds on "
                f"({', '.join(expected)}); install a tested version"
            )
