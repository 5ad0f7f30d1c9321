"""The fields of dataclasses: their types, bounds, defaults and documentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from docstring_parser.common import DocstringStyle

from easd.errors import EasdError, shown


@dataclass(frozen=True, slots=True)
class Within:
    """Bounds of a number, as in `rate: Annotated[float, Within(0, 1, "not a share")]`.

    Attributes:
        least, most: inclusive bounds.
        what: description of a number outside, such as "not a share".
        unit: of the number.
        above: whether `least` itself is excluded.
    """

    least: float
    most: float
    what: str
    unit: str = ""
    above: bool = False

    def admits(self, value: Any) -> bool:
        """Whether a value is within bounds; NaN and integers too large for a float are not."""
        try:
            value = float(value) if math.isinf(self.most) else value
        except OverflowError:
            return False
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def limits(self, kind: type) -> str:
        """The valid values, for messages."""
        unit = f"{self.unit}, " if self.unit else ""
        if math.isinf(self.most):
            return "a number" if math.isinf(self.least) else f"{unit}{self.least:g} or more"
        if kind is int:
            return f"{unit}{self.least} to {self.most}"
        return f"{unit}a number in {'(' if self.above else '['}{self.least:g}, {self.most:g}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The values that a field takes.

    Attributes:
        kind: its type without `None`; the type of an element if it holds several.
        several: whether it holds several values.
        optional: whether it may be `None`.
        choices: all values, if they are enumerated.
        words: texts that may stand for a number.
        within: its declared bounds, if any.
    """

    kind: type
    several: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    within: Within | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Described(Kind):
    """A field of a dataclass.

    Attributes:
        name: as in the dataclass.
        default: its default; `MISSING` if it has none or a factory.
        help: its text in the dataclass's docstring.
    """

    name: str
    default: Any
    help: str


@cache
def described(owner: type) -> dict[str, Described]:
    """The fields of a dataclass by name; their documentation may come from its bases."""
    help_texts = _documentation(owner)
    defaults = {field.name: field.default for field in fields(owner)}
    return {
        name: Described(
            **{field.name: getattr(kind, field.name) for field in fields(Kind)},
            name=name,
            default=defaults[name],
            help=help_texts.get(name, ""),
        )
        for name, kind in _kinds(owner).items()
    }


def default_text(field: Described) -> str | None:
    """The default as text for help; None if it is empty."""
    if field.default in (MISSING, None, ()):
        return None
    if isinstance(field.default, bool):
        return "yes" if field.default else "no"
    if isinstance(field.default, tuple):
        return ", ".join(map(str, field.default))
    return str(field.default)


def _documentation(owner: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for kind in reversed(owner.__mro__):
        if kind.__module__ == "builtins":
            continue
        for entry in parse_from_object(kind, DocstringStyle.GOOGLE).params:
            text = " ".join((entry.description or "").split())
            found |= {name.strip(): text for name in entry.arg_name.split(",")}
    return found


@cache
def _kinds(owner: type) -> dict[str, Kind]:
    hints = get_type_hints(owner, include_extras=True)
    return {field.name: _kind(hints[field.name]) for field in fields(owner)}


def _kind(hint: Any) -> Kind:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = (each for each in arguments[1:] if isinstance(each, Within))
        return replace(_kind(arguments[0]), within=next(bounds, None))
    if origin in (Union, UnionType):
        types = [each for each in arguments if each is not NoneType]
        kind = _kind(types[0]) if len(types) == 1 else _number_or_word(types)
        return replace(kind, optional=NoneType in arguments)
    if origin is tuple:
        alike = len(arguments) == 2 and arguments[1] is Ellipsis
        element = _kind(arguments[0]) if alike else Kind(kind=object)
        return replace(Kind(kind=object) if element.several else element, several=True)
    if origin is Literal:
        return Kind(kind=str, choices=arguments)
    return Kind(kind=hint if isinstance(hint, type) else object)


def _number_or_word(types: Sequence[Any]) -> Kind:
    """The kind of a number in whose place some texts may stand."""
    numbers = [kind for kind in map(_kind, types) if kind.kind in _NUMBERS]
    words = [kind.choices for kind in map(_kind, types) if kind.choices]
    if len(types) == 2 and numbers and words:
        return replace(numbers[0], words=words[0])
    return Kind(kind=object)


def check_fields(owner: Any, error: type[EasdError]) -> None:
    """Refuses a dataclass with a field of the wrong type or out of bounds.

    Integers without declared bounds must fit into 64 bits, and floats must not be NaN. Integers
    become floats, and lists become tuples, where the field's type says so.

    Raises:
        error: Names the field, its value and what to use instead.
    """
    for name, kind in _kinds(type(owner)).items():
        value: Any = getattr(owner, name)
        if value is None and kind.optional:
            continue
        if kind.several and not isinstance(value, tuple | list):
            what = "one text" if isinstance(value, str) else "one value"
            raise error(f"{name} = {shown(value)} is {what}; give a list, such as [{shown(value)}]")
        elements: Any = value if kind.several else (value,)
        for each in elements:
            if wrong := _wrong(each, kind):
                raise error(f"{name} = {shown(each)} {wrong}")
        if kind.kind is float and isinstance(value, Integral):
            object.__setattr__(owner, name, float(value))
        if isinstance(value, list) and kind.several:
            object.__setattr__(owner, name, tuple(value))


def bounds_of(kind: Kind) -> Within | None:
    """The bounds of a number, declared or those of its type; None for anything else."""
    return kind.within or (_NUMBERS[kind.kind][1] if kind.kind in _NUMBERS else None)


def _wrong(value: Any, kind: Kind) -> str | None:
    """The fault of a value and what to use instead; None if it is valid."""
    if kind.choices:
        allowed = ", ".join(kind.choices)
        return None if value in kind.choices else f"is not known; choose one of {allowed}"
    if kind.kind is bool:
        return None if isinstance(value, bool) else "is neither true nor false; use one of them"
    if kind.kind is str:
        return None if isinstance(value, str) else "is not a text; use one"
    within = bounds_of(kind)
    if within is None or (isinstance(value, str) and value in kind.words):
        return None
    valid = " or ".join((within.limits(kind.kind), *kind.words))
    if isinstance(value, bool) or not isinstance(value, _NUMBERS[kind.kind][0]):
        what = "whole number" if kind.kind is int else "number"
        return f"is not a {what}; use {valid}"
    return None if within.admits(value) else f"is {within.what}; use {valid}"


# The abstract class of each type of number, and its bounds if a field declares none.
_NUMBERS: dict[type, tuple[type, Within]] = {
    int: (Integral, Within(-(2**63), 2**63 - 1, "out of range")),
    float: (Real, Within(-math.inf, math.inf, "not a number")),
}
