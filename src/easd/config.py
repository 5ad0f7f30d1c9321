"""The configuration of a run, parsed once from options, files or dictionaries."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from easd.core.rules import Rule, field_names, make_rule, rule_name, rule_names, rule_type
from easd.engine.settings import Settings
from easd.errors import ConfigError, EasdError, RuleError, shown
from easd.parsing import parse_yaml

DEFAULT_PAIR = "smollm2"
DTYPES = ("float32", "bfloat16", "float16", "float64")

# Fields of rules that may be given in bits.
IN_NATS = ("tau_h",)

_BITS = re.compile(r"\s*([0-9.eE+-]+)\s*bits?\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The models of a run and how they decode.

    Attributes:
        pair: an embedded pair's name (see `easd pairs`); smollm2 unless `target` is given.
        target: the target model: a hub id or a folder.
        draft: the draft model: a hub id or a folder.
        dtype: type of the weights: float32, bfloat16, float16 or float64. Unless given, float32 on
            a CPU and otherwise the checkpoint's.
        int8_draft: round the draft's matrices to int8, which changes the draft and is faster on a
            CPU for up to about ten texts at once.
        device: device of the models: cpu, cuda, cuda:1 or mps; unless given, a GPU if there is one.
        trust_remote_code: run Python code that comes with a checkpoint; read it before.
        chat: put prompts into the tokenizer's chat template; unless given, if it has one.
        settings: everything else.
    """

    pair: str | None = None
    target: str | None = None
    draft: str | None = None
    dtype: str | None = None
    int8_draft: bool = False
    device: str | None = None
    trust_remote_code: bool = False
    chat: bool | None = None
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if self.target is None and self.draft is None:
            object.__setattr__(self, "pair", self.pair or DEFAULT_PAIR)
        elif self.pair is not None:
            raise ConfigError(
                f"pair = {self.pair!r} names both models already; leave out target and draft"
            )
        elif self.target is None:
            raise ConfigError(f"draft = {self.draft!r} has no target; name one, or a pair")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(
                f"dtype = {self.dtype!r} is not known; use one of {', '.join(DTYPES)}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Builds a run from a flat mapping; `rule` is a name or a mapping with its fields."""
        values = dict(values)
        settings = [f.name for f in fields(Settings)]
        for name in values:
            if name not in (*MODEL_FIELDS, *settings):
                known = ", ".join([*MODEL_FIELDS, *settings])
                raise ConfigError(f"{name!r} is not a setting; choose from {known}")
        rule = values.pop("rule", None)
        found: dict[str, Any] = {} if rule is None else {"rule": parse_rule(rule)}
        found |= {
            name: _convert(Settings if name in settings else cls, name, value, ConfigError)
            for name, value in values.items()
        }
        models = {name: found.pop(name) for name in MODEL_FIELDS if name in found}
        return cls(**models, settings=Settings(**found))

    def to_dict(self) -> dict[str, Any]:
        """The flat mapping that `from_dict` reads, in types that JSON and YAML know."""
        settings = {f.name: _plain(getattr(self.settings, f.name)) for f in fields(Settings)}
        models = {name: getattr(self, name) for name in MODEL_FIELDS}
        return {**models, **settings, "rule": rule_to_dict(self.settings.rule)}


MODEL_FIELDS = tuple(each.name for each in fields(RunConfig) if each.name != "settings")

Fill = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def load_config(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    fill: Fill | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Reads a YAML file and applies dotted overrides, such as `{"rule.tau_h": 1.2}`.

    Args:
        path: the file, if any.
        overrides: settings by name, dotted for fields of the rule.
        fill: completes the rule's mapping, for example from a calibration.
        defaults: settings that neither file nor overrides give.
    """
    values = read_yaml(Path(path)) if path is not None else {}
    leave_models_to(overrides or {}, values)
    for name, value in (overrides or {}).items():
        _override(values, name, value)
    if fill is not None:
        values["rule"] = fill(_rule_mapping(values.get("rule") or {}))
    values = {**(defaults or {}), **values}
    return RunConfig.from_dict(values)


def leave_models_to(overrides: Mapping[str, Any], values: dict[str, Any]) -> None:
    """Removes a file's models that an override replaces; a pair replaces both."""
    if overrides.get("pair") is not None:
        values.pop("target", None)
        values.pop("draft", None)
    if overrides.get("target") is not None:
        values.pop("pair", None)


def parse_override(text: str) -> tuple[str, Any]:
    """Splits `field=value`; the value is read as YAML."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{text!r} sets nothing; write field=value")
    try:
        return name.strip(), parse_yaml(value)
    except ValueError:
        return name.strip(), value  # Checked with the setting.


def parse_rule(spec: str | Mapping[str, Any]) -> Rule:
    """A rule from its name, or from a mapping with `name` and any of its fields.

    `tau_h` may be given in bits ("2bits"), which are converted to nats with a warning.
    """
    values = _rule_mapping(spec)
    name = values.pop("name", "easd")
    if not isinstance(name, str):
        raise RuleError(f"rule {shown(name)} is not known; choose one of {', '.join(rule_names())}")
    kind = rule_type(name)
    known = field_names(kind)
    for key, value in values.items():
        if key in known:
            value = _to_nats(key, value) if key in IN_NATS else value
            values[key] = _convert(kind, key, value, RuleError)
    return make_rule(name, **values)


def rule_to_dict(rule: Rule) -> dict[str, Any]:
    """The mapping that `parse_rule` reads."""
    values = asdict(rule)  # type: ignore[call-overload]
    return {"name": rule_name(rule), **{key: _plain(value) for key, value in values.items()}}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"cannot read the config {str(path)!r} ({reason})") from None
    except ValueError as error:
        raise ConfigError(f"the config {str(path)!r} is not YAML ({error})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"the config {str(path)!r} is not a mapping; write lines like 'gamma: 4'")
    return values


def _override(values: dict[str, Any], name: str, value: Any) -> None:
    head, _, field_name = name.partition(".")
    if head != "rule":
        values[name] = value
        return
    rule = _rule_mapping(values.get("rule") or {})
    if field_name:
        rule[field_name] = value
    elif isinstance(value, str):
        # Another rule has other fields; the same rule keeps those the file gave.
        rule = rule if rule.get("name", "easd") == value else {}
        rule["name"] = value
    else:
        rule = value
    values["rule"] = rule


def _rule_mapping(spec: Any) -> dict[str, Any]:
    if isinstance(spec, Mapping):
        return {str(name): value for name, value in spec.items()}
    return {"name": spec}


def _to_nats(name: str, value: Any) -> Any:
    if not isinstance(value, str) or not (match := _BITS.fullmatch(value)):
        return value
    try:
        bits = float(match[1])
    except ValueError:
        return value
    nats = bits * math.log(2)
    warnings.warn(f"{name} = {bits:g} bits is {nats:.6g} nats", stacklevel=4)
    return nats


def _convert(owner: type, name: str, value: Any, error: type[EasdError]) -> Any:
    adapter = TypeAdapter(get_type_hints(owner)[name], config=ConfigDict(allow_inf_nan=True))
    try:
        return adapter.validate_python(value)
    except ValidationError as failure:
        reason = failure.errors()[0]["msg"]
        raise error(
            f"{name} = {shown(value)} does not fit: {reason[0].lower()}{reason[1:]}"
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    return value
