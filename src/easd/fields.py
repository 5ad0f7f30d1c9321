"""The fields of dataclasses, each with its type, its default and the sentence that documents it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from docstring_parser.common import DocstringStyle


@dataclass(frozen=True, slots=True)
class Described:
    """A field of a dataclass.

    Attributes:
        name: as in the dataclass.
        kind: its type without `None`; the type of an element where it holds several.
        several: whether it holds several values.
        choices: the only values there are, if it has such.
        default: its default; `MISSING` where it has none, or a factory.
        help: what the dataclass's docstring says of it.
    """

    name: str
    kind: type
    several: bool
    choices: tuple[str, ...]
    default: Any
    help: str


@cache
def described(owner: type) -> dict[str, Described]:
    """The fields of a dataclass by name, with the documentation of its bases where it adds none."""
    hints, said = get_type_hints(owner), _documentation(owner)
    return {
        field.name: Described(
            field.name,
            *_taken_apart(hints[field.name]),
            default=field.default,
            help=said.get(field.name, ""),
        )
        for field in fields(owner)
    }


def default_text(field: Described) -> str | None:
    """The default as a reader would write it; None where that says nothing."""
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


def _taken_apart(hint: Any) -> tuple[type, bool, tuple[str, ...]]:
    """The type of a value, whether there are several, and the choices."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        (hint,) = (each for each in arguments if each is not NoneType)
        return _taken_apart(hint)
    if origin is tuple:
        kind, _, choices = _taken_apart(arguments[0])
        return kind, True, choices
    if origin is Literal:
        return str, False, arguments
    return (hint if isinstance(hint, type) else object), False, ()
