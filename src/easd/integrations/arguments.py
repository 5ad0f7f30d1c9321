"""The flat `key=value` arguments of other people's command lines, read as one of our runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from easd.config import RunConfig, load_config
from easd.core.rules import RULES, field_names
from easd.engine.settings import Settings

_RUN_FIELDS = {field.name for kind in (RunConfig, Settings) for field in fields(kind)}
_RULE_FIELDS = {name for kind in RULES.values() for name in field_names(kind)}


def run_config(arguments: Mapping[str, Any]) -> RunConfig:
    """A run from flat arguments.

    `config` names a YAML file that the others are laid over. A field of the rule may stand alone
    (`tau_h`) or behind its owner (`rule.tau_h`).

    Raises:
        EasdError: An argument is unknown or does not fit.
    """
    values = dict(arguments)
    path = values.pop("config", None)
    # Another rule drops the fields that the file gave, so it comes before its own.
    names = sorted(values, key=lambda name: name != "rule")
    return load_config(path, {_full_name(name): values[name] for name in names})


def before_stop(text: str, stop: tuple[str, ...]) -> str:
    """`text` up to the first stop string: harnesses want the answer without it."""
    return text[: min((text.find(string) for string in stop if string in text), default=None)]


def _full_name(name: str) -> str:
    return f"rule.{name}" if name in _RULE_FIELDS - _RUN_FIELDS else name
