"""The plugin's settings, and the rule that they give a request."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from easd.config import parse_rule, rule_to_dict
from easd.core.couplings import Coupling
from easd.core.gate import Gate
from easd.core.rules import EASD, Rule, rule_name
from easd.core.rules.gated import EntropyGated
from easd.diagnose.calibration_file import read_calibration
from easd.errors import ConfigError, shown
from easd.fields import described
from easd.integrations.vllm import KEY
from easd.parsing import parse_json

COLDEST, HOTTEST = 0.01, 100  # vLLM's lowest temperature, and the highest of easd.
_COUPLINGS: tuple[Coupling, ...] = ("published", "maximal", "block")

# Fields outside the gate, which must have their defaults where EASD is followed as published.
_AS_PUBLISHED = tuple(name for name in described(EASD) if name not in described(Gate))


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The default rule, and what requests may ask for.

    Attributes:
        rule: the rule of requests that name none.
        coupling: `published` for EASD's published procedure; `maximal`, or `block` where vLLM
            verifies blocks as a whole, to draw from a rule's law; None for the rule's default.
        draft_temperature: temperature that drafts of sampled requests are drawn at; None for the
            request's. Rules keep looking at the draft at the request's temperature.
        lossless_only: decode requests without a rule by plain speculation, and refuse rules that
            can change the text.
    """

    rule: Rule
    coupling: Coupling | None = None
    draft_temperature: float | None = None
    lossless_only: bool = False

    @classmethod
    def parse(cls, values: Any) -> Serving:
        """Parses `additional_config["easd"]`: the rule's fields, and settings of the plugin.

        `calibration` names a file of `easd tune`, `calibrate` or `diagnose`, which fills in fields
        that are not given, and the draft temperature of a tuned rule. The plugin cannot check that
        it was made for these models.

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
        coupling = values.pop("coupling", None)
        if coupling not in (None, *_COUPLINGS):
            raise ConfigError(
                f"coupling = {coupling!r} is not served in vLLM; use one of {', '.join(_COUPLINGS)}"
            )
        draft_temperature = _draft_temperature(values.pop("draft_temperature", None))
        calibration = values.pop("calibration", None)
        if calibration is not None:
            if not isinstance(calibration, str):
                raise ConfigError(f"calibration = {calibration!r} does not fit; give a file's path")
            found = read_calibration(calibration)
            values = found.fill(values)
            tuned = found.decoding.get("draft_temperature")
            if draft_temperature is None and values.get("name") == found.fields.get("name"):
                draft_temperature = None if tuned is None else max(COLDEST, tuned)
        serving = cls(
            rule=parse_rule(values),
            coupling=coupling,
            draft_temperature=draft_temperature,
            lossless_only=lossless_only,
        )
        serving.check(serving.rule)
        return serving

    def as_published(self, rule: Rule) -> bool:
        """Returns whether `rule` is followed by EASD's published procedure, not by its law."""
        return (self.coupling or rule.default_coupling) == "published" and isinstance(rule, EASD)

    def check(self, rule: Rule) -> None:
        """Refuses a rule that vLLM's kernels cannot carry out.

        Raises:
            ConfigError: They cannot.
        """
        name = rule_name(rule)
        if rule.models != "both":
            raise ConfigError(
                f"rule {name} runs one model alone and is not served in vLLM; serve that model "
                "without speculation"
            )
        if not rule.has_law:
            raise ConfigError(
                f"rule {name} has no law for vLLM's kernels to draw from; choose another rule"
            )
        if rule.needs_raw == "always":
            raise ConfigError(
                f"rule {name} with these fields needs probabilities before temperature and "
                "truncation, which vLLM's sampler does not keep; use entropy_of = 'sampling'"
            )
        if self.as_published(rule):
            if self.draft_temperature is not None:
                raise ConfigError(
                    f"draft_temperature = {self.draft_temperature} would change what {name} emits: "
                    "its published procedure draws from the draft's own distribution; add "
                    "coupling = 'maximal', which keeps its law at any draft temperature"
                )
            _check_as_published(rule)
        elif self.coupling == "published":
            raise ConfigError(
                f"coupling = 'published' is served in vLLM for easd and its ablations, not for "
                f"{name}; leave it out, or use 'maximal'"
            )

    def rule_for(self, extra_args: Mapping[str, Any] | None) -> Rule | None:
        """Returns the rule of a request with `extra_args`; None for plain speculation.

        Raises:
            EasdError: The rule does not exist or is not allowed.
        """
        if not extra_args or KEY not in extra_args:
            return None if self.lossless_only or self.rule.lossless else self.rule
        return _rule_for(self, json.dumps(extra_args[KEY], sort_keys=True, default=repr))


@lru_cache(maxsize=4096)
def _rule_for(serving: Serving, asked_json: str) -> Rule | None:
    """Returns the rule that a JSON text asks for; cached, since workers need it at every step."""
    asked = json.loads(asked_json)
    if isinstance(asked, str):  # Over HTTP `vllm_xargs` cannot carry mappings.
        try:
            asked = parse_json(asked)
        except ValueError:
            raise _not_understood(asked) from None
    if asked in (False, True):  # 0 and 1 too: HTTP turns booleans into numbers.
        rule = serving.rule if asked else None
    elif isinstance(asked, dict):
        # Without a name, the fields change the server's rule.
        rule = parse_rule(asked if "name" in asked else {**rule_to_dict(serving.rule), **asked})
        serving.check(rule)
    else:
        raise _not_understood(asked)
    if rule is None or rule.lossless:
        return None
    never_opens = isinstance(rule, EntropyGated) and rule.tau_h == math.inf
    if serving.lossless_only and not never_opens:
        raise ConfigError(
            f"this server is lossless_only and refuses easd = {asked_json}; leave it out"
        )
    return rule


def _not_understood(asked: Any) -> ConfigError:
    return ConfigError(
        f"easd = {asked!r} is not understood; use false, true, or a mapping like "
        '{"tau_h": 1.2} (over HTTP as JSON text)'
    )


def _draft_temperature(value: Any) -> float | None:
    """Returns a draft temperature that vLLM divides by."""
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not COLDEST <= value <= HOTTEST:
        raise ConfigError(
            f"draft_temperature = {shown(value)} is not served in vLLM; use a number from "
            f"{COLDEST} to {HOTTEST}"
        )
    return float(value)


def _check_as_published(rule: Any) -> None:
    default = EASD()
    for name in _AS_PUBLISHED:
        value = getattr(default, name)
        if getattr(rule, name) != value:
            raise ConfigError(
                f"{name} = {getattr(rule, name)!r} is not served in vLLM with EASD's published "
                f"procedure; use {value!r}, or coupling = 'maximal'"
            )
    if "target_entropy" not in rule.conditions:
        # Without it the gate could open where the target is certain and leaves no other token.
        raise ConfigError(
            f"conditions = {list(rule.conditions)} is not served in vLLM with EASD's published "
            "procedure; add 'target_entropy', or use coupling = 'maximal'"
        )
