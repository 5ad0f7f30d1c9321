"""What the server was asked to do, and which rule that gives a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from easd.config import parse_rule, rule_to_dict
from easd.core.gate import Gate
from easd.core.rules import EASD, Rule, rule_name
from easd.errors import ConfigError
from easd.fields import described
from easd.integrations.vllm import KEY
from easd.parsing import parse_json

# A request may set the gate's thresholds. What is not the gate's at all is as published.
PER_REQUEST = tuple(name for name, field in described(Gate).items() if field.kind is float)
_AS_PUBLISHED = tuple(name for name in described(EASD) if name not in described(Gate))


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The rule of requests that say nothing, and what requests may ask for.

    Attributes:
        rule: an entropy-aware rule in its published form.
        lossless_only: requests that say nothing are decoded by plain speculation, and those that
            ask for a gate which can open are refused.
    """

    rule: EASD
    lossless_only: bool = False

    @classmethod
    def parse(cls, values: Any) -> Serving:
        """Reads `additional_config["easd"]`: the rule's fields, and `lossless_only`.

        Raises:
            EasdError: A key is unknown, or a value does not fit or is not served here.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f'additional_config["{KEY}"] = {values!r} is no mapping; '
                'write {"tau_h": 1.5, "tau_o": 0.8}'
            )
        values = dict(values)
        lossless_only = values.pop("lossless_only", False)
        if not isinstance(lossless_only, bool):
            raise ConfigError(f"lossless_only = {lossless_only!r} does not fit; use true or false")
        return cls(rule=_served(parse_rule(values)), lossless_only=lossless_only)

    def rule_for(self, extra_args: Mapping[str, Any] | None) -> EASD | None:
        """The rule of a request with `extra_args`; None for plain speculation.

        Raises:
            EasdError: The request asks for what does not exist or is not allowed.
        """
        if not extra_args or KEY not in extra_args:
            return None if self.lossless_only else self.rule
        return _rule_for(self, json.dumps(extra_args[KEY], sort_keys=True, default=repr))


@lru_cache(maxsize=4096)
def _rule_for(serving: Serving, asked_json: str) -> EASD | None:
    """From the JSON of what was asked, since a worker looks a request up at every step."""
    asked = json.loads(asked_json)
    if isinstance(asked, str):  # over HTTP `vllm_xargs` carries no mappings
        try:
            asked = parse_json(asked)
        except ValueError:
            raise _not_understood(asked) from None
    if asked in (False, True):  # 0 and 1 too: HTTP turns booleans into numbers
        rule = serving.rule if asked else None
    elif isinstance(asked, dict):
        for key in asked:
            if key not in PER_REQUEST:
                raise ConfigError(
                    f"{key!r} cannot be set per request; choose from {', '.join(PER_REQUEST)}"
                )
        rule = parse_rule({**rule_to_dict(serving.rule), **asked})
        assert isinstance(rule, EASD)
    else:
        raise _not_understood(asked)
    if serving.lossless_only and rule is not None and rule.tau_h != float("inf"):
        raise ConfigError(
            f"this server is lossless_only and refuses easd = {asked_json}; leave it out"
        )
    return rule


def _not_understood(asked: Any) -> ConfigError:
    return ConfigError(
        f"easd = {asked!r} is not understood; use false, true, or a mapping like "
        '{"tau_h": 1.2} (over HTTP as JSON text)'
    )


def _served(rule: Rule) -> EASD:
    """`rule`, where vLLM's kernels can carry it out.

    Raises:
        ConfigError: They cannot.
    """
    if not isinstance(rule, EASD):
        raise ConfigError(
            f"rule {rule_name(rule)} is not served in vLLM; use 'easd' or one of its ablations"
        )
    default = EASD()
    for name in _AS_PUBLISHED:
        value = getattr(default, name)
        if getattr(rule, name) != value:
            raise ConfigError(
                f"{name} = {getattr(rule, name)!r} is not served in vLLM; only {value!r} is"
            )
    if "target_entropy" not in rule.conditions:
        # Without it the gate could open where the target is certain: nothing to redraw from.
        raise ConfigError(
            f"conditions = {list(rule.conditions)} is not served in vLLM; add 'target_entropy'"
        )
    return rule
