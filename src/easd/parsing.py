"""Parses untrusted JSON and YAML; every fault of a text raises ValueError."""

from __future__ import annotations

import json
from typing import Any

import yaml


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text."""
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # YAML's constructors raise whatever int() or datetime() do.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
