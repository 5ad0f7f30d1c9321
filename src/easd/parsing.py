"""JSON and YAML that others wrote: whatever is wrong with a text is one kind of error."""

from __future__ import annotations

import json
from typing import Any

import yaml


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is no JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: It is no YAML, holds a value that is none, or is nested too deeply.
    """
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # YAML's constructors raise whatever int() or datetime() do.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
