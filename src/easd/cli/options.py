"""Options made of the fields of dataclasses, and those that several commands share.

An option that was not given is absent from what a command receives, so that a file or a
calibration can still decide it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypedDict

from cyclopts import Group, Parameter

from easd.config import IN_NATS, MODEL_FIELDS, RunConfig, parse_override
from easd.core.rules import RULES, rule_names
from easd.engine.settings import Settings
from easd.errors import ConfigError, shown
from easd.fields import Described, default_text, described

MODELS, RULE, OTHER_RULES, DECODING, GRID, SERVER, OUTPUT = (
    Group(title, sort_key=place)
    for place, title in enumerate(
        (
            *("Models", "Rule", "Fields of other rules", "Decoding", "Grid", "Server"),
            "Input and output",
        )
    )
)

# Options that are not called as their field.
_CALLED = {"batch_size": "batch", "bad_words": "bad-word"}
_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}

Options: TypeAlias = Mapping[str, Any] | None


def options(fields: Iterable[Described], group: Group, defaults: Mapping[str, str] = {}) -> Any:
    """The type of a parameter that takes an option for every field.

    Args:
        fields: what the options set.
        group: under which help lists them.
        defaults: what help says of a default that the command changes, by field.
    """
    taken = {
        field.name: Annotated[*_option(field, group, defaults.get(field.name))] for field in fields
    }
    kind = TypedDict("Given", taken, total=False)  # pyright: ignore
    return Annotated[kind | None, Parameter(name="*")]


def _option(field: Described, group: Group, default: str | None) -> tuple[Any, Parameter]:
    in_nats = field.name in IN_NATS
    kind: Any = str if in_nats else field.kind
    name = "--" + _CALLED.get(field.name, field.name.replace("_", "-"))
    parameter = Parameter(
        name=name,
        help=_sentence(field.help + (" In bits as '2bits'." if in_nats else "")),
        group=group,
        metavar=None if kind is bool else "|".join(field.choices) or _METAVARS[kind],
        show_default=default or default_text(field) or False,
        negative=f"--no-{name[2:]}" if kind is bool else (),
        allow_leading_hyphen=kind is str,
    )
    return (list[kind] if field.several else kind), parameter


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def _rule_fields() -> tuple[list[Described], list[Described]]:
    """The rule and the fields of the default one; and every field that only others have."""
    usual = type(Settings().rule)
    rule = replace(
        described(Settings)["rule"],
        kind=str,
        default=_name_of(usual),
        help=f"how draft tokens are judged: {', '.join(rule_names())}.",
    )
    own = described(usual)
    owners: dict[str, list[str]] = {}
    for name, kind in RULES.items():
        for field in described(kind):
            owners.setdefault(field, []).append(name)
    others = [
        _of_rules(field, names)
        for field, names in owners.items()
        if field not in own and field not in described(Settings)
    ]
    return [rule, *own.values()], others


def _of_rules(name: str, rules: list[str]) -> Described:
    """A field of some rules, with what each of them says of it."""
    fields = {rule: described(RULES[rule])[name] for rule in rules}
    said = _by_value({rule: field.help.rstrip(".") for rule, field in fields.items()})
    defaults = _by_value({rule: str(default_text(field)) for rule, field in fields.items()})
    return replace(
        fields[rules[0]],
        help="; ".join(f"{text} ({', '.join(names)})".strip() for text, names in said.items()),
        default=next(iter(defaults))
        if len(defaults) == 1
        else "; ".join(f"{value} ({', '.join(names)})" for value, names in defaults.items()),
    )


def _by_value(values: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return found


def _name_of(kind: type) -> str:
    return next(name for name, each in RULES.items() if each is kind)


def fields_of(owner: type, *names: str, without: Iterable[str] = ()) -> list[Described]:
    """Fields of a dataclass: those named, or all but some."""
    fields = described(owner)
    return [fields[name] for name in names or fields if name not in without]


if TYPE_CHECKING:
    ModelOptions = RuleOptions = OtherRuleOptions = DecodingOptions = Options
else:
    ModelOptions = options(fields_of(RunConfig, *MODEL_FIELDS), MODELS)
    DecodingOptions = options(fields_of(Settings, without=["rule"]), DECODING)
    _usual, _others = _rule_fields()
    RuleOptions = options(_usual, RULE)
    OtherRuleOptions = options(_others, OTHER_RULES)

Set = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        group=RULE,
        metavar="FIELD=VALUE",
        help="Any field of the rule; may be repeated.",
        allow_leading_hyphen=True,
    ),
]
Config = Annotated[
    Path | None,
    Parameter(help="A YAML file with any of these settings; options go before it."),
]
Quiet = Annotated[
    bool,
    Parameter(
        name=["--quiet", "-q"],
        group=OUTPUT,
        negative=(),
        show_default=False,
        help="Print results and errors, nothing else.",
    ),
]
CalibrationOption = Annotated[
    Path | None,
    Parameter(
        name="--calibration",
        group=RULE,
        help="Take thresholds (and the pool) from a file of `easd calibrate` or `easd diagnose`, "
        "or rule and temperature from one of `easd tune`.",
    ),
]
Force = Annotated[
    bool,
    Parameter(
        group=RULE,
        negative=(),
        show_default=False,
        help="Use a calibration of another pair or other settings.",
    ),
]


def joined(values: Iterable[Any]) -> str:
    """How help writes a default of several values."""
    return ", ".join(map(str, values))


def overrides_of_rule(*given: Options, set_: Iterable[str] | None = None) -> dict[str, Any]:
    """The rule and its fields, as `load_config` takes them; the rule comes before its fields."""
    found = {name: value for each in given for name, value in (each or {}).items()}
    found |= dict(parse_override(text) for text in set_ or ())
    if "name" in found:
        raise ConfigError(f"name = {shown(found['name'])} is no field of a rule; use --rule")
    rule = {"rule": found.pop("rule")} if "rule" in found else {}
    return rule | {f"rule.{name}": value for name, value in found.items()}
