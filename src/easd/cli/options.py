"""Options made from the fields of dataclasses, and options that several commands share.

Commands receive only options that were given, so that a file or a calibration can set the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypedDict

from cyclopts import Group, Parameter

from easd.config import IN_NATS, MODEL_FIELDS, RunConfig, load_config, parse_override
from easd.core.rules import RULES, rule_name, rule_names
from easd.diagnose.calibration_file import CalibrationFile, read_calibration
from easd.engine.pair import Pair, fingerprints
from easd.engine.settings import Settings
from easd.errors import ConfigError, shown
from easd.fields import Described, default_text, described

_TITLES = ("Models", "Rule", "Fields of other rules", "Decoding", "Grid", "Server")
MODELS, RULE, OTHER_RULES, DECODING, GRID, SERVER, OUTPUT = (
    Group(title, sort_key=place) for place, title in enumerate((*_TITLES, "Input and output"))
)

# Options whose names differ from their fields'.
_NAMES = {"batch_size": "batch", "bad_words": "bad-word"}
_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT"}

Flag = partial(Parameter, negative=(), show_default=False)

Options: TypeAlias = Mapping[str, Any] | None


def options(fields: Iterable[Described], group: Group, defaults: Mapping[str, str] = {}) -> Any:
    """Returns the type of a parameter that takes an option for every field.

    `defaults` are texts for help where the command changes a field's default.
    """
    hints = {
        field.name: Annotated[*_option(field, group, defaults.get(field.name))] for field in fields
    }
    kind = TypedDict("Given", hints, total=False)  # pyright: ignore
    return Annotated[kind | None, Parameter(name="*")]


def _option(field: Described, group: Group, default: str | None) -> tuple[Any, Parameter]:
    in_nats = field.name in IN_NATS
    kind: Any = str if in_nats else field.kind
    metavar = "|".join(field.choices) or "|".join((_METAVARS.get(kind, ""), *field.words))
    kind = kind | Literal[field.words] if field.words else kind
    name = "--" + _NAMES.get(field.name, field.name.replace("_", "-"))
    parameter = Parameter(
        name=name,
        help=_sentence(field.help + (" In bits as '2bits'." if in_nats else "")),
        group=group,
        metavar=None if kind is bool else metavar,
        show_choices=not field.words,  # The metavar has them beside the number.
        show_default=default or default_text(field) or False,
        negative=f"--no-{name[2:]}" if kind is bool else (),
        allow_leading_hyphen=kind is str,
    )
    return (list[kind] if field.several else kind), parameter


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def _rule_fields() -> tuple[list[Described], list[Described]]:
    """Returns the rule with the default rule's fields, and the fields of other rules only."""
    default = Settings().rule
    rule = replace(
        described(Settings)["rule"],
        kind=str,
        default=rule_name(default),
        help=f"how draft tokens are judged: {', '.join(rule_names())}.",
    )
    own = described(type(default))
    owners: dict[str, list[str]] = {}
    for name, kind in RULES.items():
        for field in described(kind):
            owners.setdefault(field, []).append(name)
    others = [
        _shared_field(field, names)
        for field, names in owners.items()
        if field not in own and field not in described(Settings)
    ]
    return [rule, *own.values()], others


def _shared_field(name: str, rules: list[str]) -> Described:
    """Returns a field of several rules, with the help and the default of each."""
    fields = {rule: described(RULES[rule])[name] for rule in rules}
    helps = _by_value({rule: field.help.rstrip(".") for rule, field in fields.items()})
    defaults = _by_value({rule: str(default_text(field)) for rule, field in fields.items()})
    return replace(
        fields[rules[0]],
        help="; ".join(f"{text} ({', '.join(names)})".strip() for text, names in helps.items()),
        default=next(iter(defaults))
        if len(defaults) == 1
        else "; ".join(f"{value} ({', '.join(names)})" for value, names in defaults.items()),
    )


def _by_value(values: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return found


def fields_of(owner: type, *names: str, without: Iterable[str] = ()) -> list[Described]:
    """Returns the named fields of a dataclass, or all but those in `without`."""
    fields = described(owner)
    return [fields[name] for name in names or fields if name not in without]


if TYPE_CHECKING:
    ModelOptions = RuleOptions = OtherRuleOptions = DecodingOptions = Options
else:
    ModelOptions = options(fields_of(RunConfig, *MODEL_FIELDS), MODELS)
    DecodingOptions = options(fields_of(Settings, without=["rule"]), DECODING)
    _default, _others = _rule_fields()
    RuleOptions = options(_default, RULE)
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
    Parameter(help="A YAML file with any of these settings; options take precedence over it."),
]
AsJson = Annotated[bool, Flag(name="--json", group=OUTPUT)]
Quiet = Annotated[
    bool,
    Flag(name=["--quiet", "-q"], group=OUTPUT, help="Print only results and errors."),
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
    bool, Flag(group=RULE, help="Use a calibration of another pair or other settings.")
]


def joined(values: Iterable[Any]) -> str:
    """Formats a default of several values for help."""
    return ", ".join(map(str, values))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of commands that decode with one pair and one rule."""

    models: ModelOptions = None
    rule: RuleOptions = None
    set_: Set = None
    calibration: CalibrationOption = None
    force: Force = False
    other_rules: OtherRuleOptions = None

    @cached_property
    def _calibrated(self) -> CalibrationFile | None:
        return read_calibration(self.calibration) if self.calibration else None

    def load(self, config: Path | None, decoding: Options, rule: str | None = None) -> RunConfig:
        """Returns the run of these options, which take precedence over the file `config`.

        `rule` is used unless the options name one.

        Raises:
            EasdError: A setting is unknown or does not fit, or a file cannot be read.
        """
        found = {**(self.rule or {}), **(self.other_rules or {})}
        found |= dict(parse_override(text) for text in self.set_ or ())
        if "name" in found:
            raise ConfigError(f"name = {shown(found['name'])} is no field of a rule; use --rule")
        rule = found.pop("rule", rule)
        # The rule comes before its fields, as it drops a file's fields of another rule.
        overrides = {
            **(self.models or {}),
            **({} if rule is None else {"rule": rule}),
            **{f"rule.{name}": value for name, value in found.items()},
            **(decoding or {}),
        }
        calibrated = self._calibrated
        return load_config(
            config,
            overrides,
            fill=calibrated.fill if calibrated else None,
            defaults=calibrated.decoding if calibrated else None,
        )

    def check(self, pair: Pair, run: RunConfig) -> None:
        """Refuses a calibration of another pair or other settings, unless forced.

        Raises:
            ConfigError: It is one.
        """
        if self._calibrated is not None and not self.force:
            self._calibrated.check(fingerprints(pair), run.settings)
