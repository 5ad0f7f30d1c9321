"""Configuration of an evaluation: models, tasks, systems, seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from easd.config import (
    Fill,
    RunConfig,
    leave_models_to,
    parse_override,
    parse_rule,
    read_yaml,
    rule_to_dict,
)
from easd.core.rules import Rule, field_names, make_rule, rule_name, rule_type
from easd.core.rules.pool import Pool
from easd.engine.settings import Settings
from easd.errors import ConfigError, shown
from easd.evaluate.grid import GRID, Grid, listed, parse_grid, whole

DEFAULT_SYSTEMS = ("target", "speculative", "easd")
BASELINES = (
    {"name": "target, temperature 0.5", "rule": "target", "temperature": 0.5},
    {"name": "target, greedy", "rule": "target", "temperature": 0.0},
)
REWARD_GUIDED = "rsd"

_STUDY = (*GRID, "trace", "baselines")
_SYSTEM_SETTINGS = tuple(f.name for f in fields(Settings) if f.name not in ("rule", "n", "seed"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """How reward-guided decoding scores steps.

    Attributes:
        model: folder or hub id of a reward model; by default the lab pair's.
        delta: smallest reward of a step that is kept.
        step: text that ends a step, or tokens in a step; by default the pair's.
    """

    model: str | None = None
    delta: float = 0.7
    step: str | int | None = None

    def __post_init__(self) -> None:
        try:
            delta = float(self.delta)
        except (TypeError, ValueError, OverflowError):
            delta = math.nan
        if not 0 <= delta < math.inf:
            raise ConfigError(
                f"delta = {shown(self.delta)} is not a threshold of rewards; use 0 or more"
            )
        object.__setattr__(self, "delta", delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One way of decoding: a rule with its settings, or reward-guided decoding."""

    name: str
    settings: Settings
    overrides: Mapping[str, Any]
    reward: Reward | None = None

    def to_dict(self) -> dict[str, Any]:
        """The system's entry in run.json."""
        found: dict[str, Any] = {
            "name": self.name,
            "kind": REWARD_GUIDED if self.reward else "rule",
        }
        if self.reward:
            found |= {f.name: getattr(self.reward, f.name) for f in fields(Reward)}
        return found | {
            "rule": rule_to_dict(self.settings.rule),
            "settings": dict(self.overrides),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig(Grid[System]):
    """A grid of systems, tasks and seeds on one pair of models.

    Attributes:
        base: models, and the systems' default settings.
        trace: number of items of each task whose tokens are recorded.
    """

    base: RunConfig
    trace: int = 100

    def __post_init__(self) -> None:
        Grid.__post_init__(self)
        if self.trace < 0:
            raise ConfigError(f"trace = {self.trace} is not a number of items; use 0 or more")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, fill: Fill = dict) -> StudyConfig:
        """Builds a study from the settings of `easd generate` and those of the grid.

        `fill` adds fields that a rule's mapping does not set, such as those of a calibration.

        Raises:
            EasdError: A key is unknown or a value does not fit.
        """
        shared = {name: value for name, value in values.items() if name not in _STUDY}
        if "rule" in shared:
            raise ConfigError("'rule' belongs to a system; list rules under 'systems'")
        if "n" in shared or "seed" in shared:
            raise ConfigError("'n' and 'seed' follow from 'seeds' here; list the seeds")
        base = RunConfig.from_dict({"coupling": "shared", "batch_size": 16, **shared})
        systems = [
            parse_system(spec, base.settings, fill=fill)
            for spec in listed(values.get("systems") or DEFAULT_SYSTEMS, "systems")
        ]
        if values.get("baselines", True):
            named = {system.name for system in systems}
            systems += [
                parse_system(spec, base.settings) for spec in BASELINES if spec["name"] not in named
            ]
        return cls(
            base=base,
            systems=tuple(systems),
            trace=whole(values.get("trace", 100), "trace"),
            **parse_grid(values),
        )

    def to_dict(self) -> dict[str, Any]:
        """The configuration in run.json, where systems have an entry of their own."""
        shared = self.base.to_dict()
        return {
            **{name: value for name, value in shared.items() if name not in ("rule", "n", "seed")},
            **Grid.to_dict(self),
            "trace": self.trace,
        }


def load_study(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    fill: Fill = dict,
) -> StudyConfig:
    """Builds a study from a YAML file and overrides.

    Raises:
        EasdError: The file cannot be read, or the result is not a valid study.
    """
    return StudyConfig.from_dict(read_study(path, overrides), fill=fill)


def read_study(
    path: str | Path | None, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of a YAML file with overrides; `endpoint.model` sets a nested field.

    Raises:
        ConfigError: The file cannot be read.
    """
    values = {} if path is None else read_yaml(Path(path))
    leave_models_to(overrides or {}, values)
    for name, value in (overrides or {}).items():
        head, _, field = name.partition(".")
        if head == "endpoint" and field:
            given = values.get(head) or {}
            given = given if isinstance(given, Mapping) else {"url": given}
            values[head] = {**given, field: value}
        else:
            values[name] = value
    return values


def parse_system(spec: str | Mapping[str, Any], shared: Settings, *, fill: Fill = dict) -> System:
    """A system from `rule` or `rule:field=value,...`, or from a mapping.

    A mapping has `rule` (a name, or a mapping with `name` and fields), an optional `name`, and any
    settings that differ from those that all systems share.

    Raises:
        EasdError: The rule, a field or a setting is unknown, or a value does not fit.
    """
    if isinstance(spec, str):
        rule = split_rule(spec)
        known = () if rule["name"] == REWARD_GUIDED else field_names(rule_type(rule["name"]))
        overrides = {
            key: rule.pop(key) for key in _SYSTEM_SETTINGS if key in rule and key not in known
        }
        name = f"{spec}{unfitted(rule, fill)}"
        return _system(name, fill(rule), overrides, shared)
    if not isinstance(spec, Mapping):
        raise ConfigError(f"system {spec!r} is not a rule; write a rule's name, or a mapping")
    overrides = {key: value for key, value in spec.items() if key not in ("name", "rule")}
    rule = spec.get("rule", "easd")
    rule = split_rule(rule) if isinstance(rule, str) else dict(rule)
    name = spec.get("name")
    note = unfitted(rule, fill)
    if note:
        name = f"{name or rule['name']}{note}"
    return _system(name, fill(rule), overrides, shared)


def unfitted(rule: Mapping[str, Any], fill: Fill) -> str:
    """A note for the name of a pool whose powers were neither given nor fitted."""
    if rule.get("name") != Pool.name or "a" in rule or "b" in rule:
        return ""
    filled, default = fill(rule), Pool()
    if (filled.get("a", default.a), filled.get("b", default.b)) != default.powers:
        return ""
    drawn = filled.get("pick", default.pick) != default.pick
    return " (not fitted: drawn from p)" if drawn else " (not fitted: greedy-p)"


def _system(
    name: str | None, rule: Mapping[str, Any], overrides: dict[str, Any], shared: Settings
) -> System:
    reward = None
    if rule.get("name") == REWARD_GUIDED:
        reward = _reward(rule)
        rule = {"name": "target"}
    for key in overrides:
        if key not in _SYSTEM_SETTINGS:
            known = ", ".join(("name", "rule", *_SYSTEM_SETTINGS))
            raise ConfigError(f"system {name!r} has no setting {key!r}; choose from {known}")
    parsed = parse_rule(rule)
    if not parsed.has_law:
        overrides = {"coupling": "published", **overrides}
    values = {f.name: getattr(shared, f.name) for f in fields(Settings)}
    values |= {**overrides, "rule": rule_to_dict(parsed)}
    return System(
        name=str(name or _describe(parsed, reward, overrides)),
        settings=RunConfig.from_dict(values).settings,
        overrides=overrides,
        reward=reward,
    )


def _reward(values: Mapping[str, Any]) -> Reward:
    known = {f.name: values[f.name] for f in fields(Reward) if f.name in values}
    unknown = set(values) - set(known) - {"name"}
    if unknown:
        has = ", ".join(f.name for f in fields(Reward))
        raise ConfigError(f"rsd has no field {unknown.pop()!r}; its fields are {has}")
    return Reward(**known)


def _describe(rule: Rule, reward: Reward | None, overrides: Mapping[str, Any]) -> str:
    """The rule's name, and all fields and settings that are not defaults."""
    if reward is not None:
        return f"rsd delta={reward.delta:g}"
    default = make_rule(rule_name(rule))
    changed = [
        f"{f.name}={getattr(rule, f.name)}"
        for f in fields(rule)  # type: ignore[arg-type]
        if getattr(rule, f.name) != getattr(default, f.name)
    ]
    changed += [f"{key}={value}" for key, value in overrides.items()]
    return " ".join([rule_name(rule), *changed])


def split_rule(text: str) -> dict[str, Any]:
    """`name:field=value,...` as a mapping; values are read as YAML."""
    name, _, rest = text.partition(":")
    found: dict[str, Any] = {"name": name}
    for part in filter(None, rest.split(",")):
        field, value = parse_override(part)
        found[field] = value
    return found
