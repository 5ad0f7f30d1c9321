"""Parses flat `key=value` arguments of other tools' command lines."""

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
    """Returns the run that flat arguments describe.

    `config` names a YAML file, which the other arguments override. A field of the rule is given as
    `tau_h` or `rule.tau_h`.

    Raises:
        EasdError: An argument is unknown or does not fit.
    """
    values = dict(arguments)
    path = values.pop("config", None)
    # Setting the rule drops the file's fields of another rule, so it comes before its fields.
    names = sorted(values, key=lambda name: name != "rule")
    return load_config(path, {_full_name(name): values[name] for name in names})


def before_stop(text: str, stop: tuple[str, ...]) -> str:
    """Returns `text` up to the first stop string, as evaluation harnesses expect."""
    return text[: min((text.find(string) for string in stop if string in text), default=None)]


def _full_name(name: str) -> str:
    return f"rule.{name}" if name in _RULE_FIELDS - _RUN_FIELDS else name
