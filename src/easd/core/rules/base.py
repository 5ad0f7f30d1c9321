"""The base class of rules, and the rules and presets by name."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib.util import module_from_spec, spec_from_file_location
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from torch import Tensor

from easd.core.couplings import Coupling, Procedure
from easd.core.gate import Gate
from easd.core.step import Models, NeedsRaw, Step
from easd.errors import RuleError, shown
from easd.fields import Within, check_fields

Probability = Annotated[float, Within(0, 1, "not a probability")]
PositiveShare = Annotated[float, Within(0, 1, "not a share", above=True)]

RULES: dict[str, type[Rule]] = {}
"""Every rule by name. Defining a class with a `name` registers it."""


class Rule(ABC):
    """The distribution of the next token, given those of both models.

    A subclass is a frozen dataclass of hyperparameters with a `name` and a `law`, from which a
    coupling derives how draft tokens are accepted and replaced. Everything else has a default.
    """

    __slots__ = ()

    name: ClassVar[str]
    source: ClassVar[str] = ""
    """Where it was published."""
    models: ClassVar[Models] = "both"
    """Which models a decoder has to run."""
    draft_at_bonus: bool = False  # Some rules make it a field.
    """Whether the draft must be evaluated at the bonus position too."""
    needs_opinion: ClassVar[bool] = False
    """Whether the law is a function of a draft model's opinion at every position."""
    needs_raw: NeedsRaw = "never"
    """When a step must carry raw probabilities (temperature 1, no truncation)."""

    def __init_subclass__(cls) -> None:
        if "name" in cls.__dict__:
            RULES[cls.name] = cls

    def __new__(cls, *values: Any, **named: Any) -> Self:
        if is_dataclass(cls):
            _check_fields(cls, named, f"{cls.__name__} ")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Checks types and bounds of the fields; a subclass that checks more calls this first."""
        check_fields(self, RuleError)

    @abstractmethod
    def law(self, step: Step) -> Tensor:
        """Distribution [B, K+1, V] of the emitted token at each position, in closed form.

        It must not depend on the draft tokens. Where `step.has_draft()` is false, the draft may not
        have been evaluated (a row of zeros).
        """

    def signals(self, step: Step) -> Mapping[str, Tensor]:
        """Quantities for traces, name -> [B, K+1].

        `gate` is the probability that the position is gated: a refusal there counts as penalised.
        """
        return {}

    def law_given(self, step: Step, signals: Mapping[str, Tensor]) -> Tensor:
        """The law, reusing `signals`, which contain at least `gate` if the rule has one."""
        return self.law(step)

    def law_of(self, step: Step, tokens: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        """The law's probability of `tokens`; both [B, K+1, n]."""
        return self.law_given(step, signals).gather(-1, tokens)

    def published(self) -> Procedure | None:
        """The procedure that the rule was published with, where it is not `maximal`."""
        return None

    @property
    def default_coupling(self) -> Coupling:
        """The coupling unless the caller chooses one."""
        return "maximal"

    @property
    def lossless(self) -> bool:
        """Whether the law is the target's at every position, whatever the draft."""
        return False

    @property
    def has_law(self) -> bool:
        """Whether the law is a function of the step's distributions."""
        return True

    @property
    def gate(self) -> Gate | None:
        """The rule's entropy gate, if it has one."""
        return None

    @classmethod
    def example(cls) -> Rule:
        """An instance for documentation and tests that can reach every branch of the law."""
        return cls()

    @classmethod
    def summary(cls) -> str:
        """One line for tables: the first line of the class's docstring."""
        return cleandoc(cls.__doc__ or "").partition("\n")[0]


def make_rule(name: str, /, **values: Any) -> Rule:
    """The rule or preset `name` with `values` for its fields.

    Raises:
        RuleError: The name or a field is unknown, or a value is out of range.
    """
    kind, preset = rule_type(name), PRESETS.get(name)
    _check_fields(kind, values, f"rule {name!r} ")
    return kind(**({} if preset is None else preset.fields) | values)


def as_rule(given: Any) -> Rule:
    """A rule from itself, its name, or its class.

    Raises:
        RuleError: It is none, or its name is unknown.
    """
    if isinstance(given, Rule):
        return given
    if isinstance(given, str):
        return make_rule(given)
    if isinstance(given, type) and issubclass(given, Rule):
        return given()
    raise RuleError(
        f"rule = {repr(given)[:80]} is not a rule; give one, such as EASD(tau_h=1.2), or the name "
        f"of one: {', '.join(rule_names())}"
    )


def _check_fields(kind: type[Rule], values: Iterable[str], rule: str) -> None:
    known = field_names(kind)
    for field in values:
        if field not in known:
            has = f"its fields are {', '.join(known)}" if known else "it has no fields"
            raise RuleError(f"{rule}has no field {shown(field)}; {has}")


def rule_type(name: str) -> type[Rule]:
    """The class of a rule's or a preset's name."""
    kind = PRESETS[name].rule if name in PRESETS else RULES.get(name)
    if kind is None:
        raise RuleError(f"rule {shown(name)} is not known; choose one of {', '.join(rule_names())}")
    return kind


def rule_names() -> list[str]:
    """The names of all rules and presets, starting with the usual baselines."""
    first = ("easd", "speculative", "target", "draft")
    return [*first, *sorted({*RULES, *PRESETS} - {*first})]


def rule_name(rule: Rule) -> str:
    """The name of the rule, or of the preset whose fields it has."""
    for name, preset in PRESETS.items():
        fixed = all(getattr(rule, field, None) == value for field, value in preset.fields.items())
        if type(rule) is preset.rule and fixed:
            return name
    return rule.name


def field_names(kind: type[Rule]) -> list[str]:
    """The names of a rule's fields."""
    return [field.name for field in fields(kind)]  # type: ignore[arg-type]


class Preset:
    """A named rule with some fields fixed."""

    def __init__(self, name: str, rule: type[Rule], summary: str, **values: Any) -> None:
        self.rule, self.summary, self.fields = rule, summary, values
        PRESETS[name] = self


PRESETS: dict[str, Preset] = {}
"""Ablations and controls by name."""


def summary_of(name: str) -> str:
    """One line about a rule or a preset, for tables."""
    return PRESETS[name].summary if name in PRESETS else rule_type(name).summary()


def load_rule_files() -> None:
    """Runs the files, and the files of the folders, in EASD_RULES, which define further rules."""
    for place in filter(None, os.environ.get("EASD_RULES", "").split(os.pathsep)):
        path = Path(place)
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            spec = spec_from_file_location(f"easd_rules_{file.stem}", file)
            try:
                assert spec is not None
                assert spec.loader is not None
                module = sys.modules[spec.name] = module_from_spec(spec)
                spec.loader.exec_module(module)
            except Exception as error:
                raise RuleError(f"EASD_RULES: cannot run {str(file)!r} ({error})") from error
