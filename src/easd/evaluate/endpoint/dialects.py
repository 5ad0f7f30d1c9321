"""How a request names its rule: a field of its own for each kind of server.

A server that does not know the field may ignore it and decode as always. So each dialect has a
switch that whoever understands it refuses: a server that accepts `wrong` does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from easd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A way to say a rule.

    Attributes:
        body: fields of a request for a rule, from the rule's name and what is said of its fields.
        wrong: fields that a server which speaks the dialect answers with a 4xx status.
        missing: what to do where a server does not speak it.
    """

    body: Callable[[Mapping[str, Any]], dict[str, Any]]
    wrong: Mapping[str, Any]
    missing: str


def _easd(rule: Mapping[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in rule.items() if key != "name"}
    return {"speculative": {"rule": rule["name"], **said}}


def _vllm(rule: Mapping[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in rule.items() if key != "name"}
    if rule["name"] == "speculative":
        return {"vllm_xargs": {"easd": False}}
    if rule["name"] == "easd":
        return {"vllm_xargs": {"easd": json.dumps(said) if said else True}}
    raise ConfigError(
        f"a request to vLLM cannot ask for rule {rule['name']!r}; speculative and easd can be "
        "asked for, other rules need a server of their own"
    )


DIALECTS: Mapping[str, Dialect] = {
    "easd": Dialect(
        body=_easd,
        wrong={"speculative": {"rule": "no such rule"}},
        missing="serve it with `easd serve`",
    ),
    "vllm": Dialect(
        body=_vllm,
        wrong={"vllm_xargs": {"easd": "no such switch"}},
        missing="start vLLM with the plugin configured (docs/vllm.md)",
    ),
}
