"""Rows of a task: read from a file or the hub, in one vocabulary of keys.

A row has `problem`, `answer` or `answers`, and what its kind needs besides: `solution`, `choices`,
`test`, `entry_point`. `id` may be missing; the place then names the row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easd.errors import ConfigError, InputError

INSTALL = "pip install 'easd[study]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row and where it stands, for messages: `gsm8k.jsonl:17`."""

    place: str
    number: int
    values: dict[str, Any]

    def text(self, key: str) -> str:
        """A string that has to be there.

        Raises:
            InputError: The key is missing, or its value is not a string.
        """
        value = self.required(key)
        if not isinstance(value, str):
            raise InputError(f"{self.place}: {key!r} is {value!r}; it has to be a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings that has to be there.

        Raises:
            InputError: The key is missing, or its value is not a list of strings.
        """
        value = self.required(key)
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise InputError(f"{self.place}: {key!r} is {value!r}; it has to be a list of strings")
        return tuple(value)

    def required(self, key: str) -> Any:
        """Any value that has to be there.

        Raises:
            InputError: The key is missing.
        """
        if key not in self.values:
            raise InputError(f"{self.place}: key {key!r} is missing")
        return self.values[key]

    def optional_text(self, key: str) -> str | None:
        """A string, or None where the key is missing or empty."""
        return self.text(key) if self.values.get(key) else None


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a file with one JSON object a line; blank lines do not count as rows.

    Raises:
        InputError: The file cannot be read, or a line holds no JSON object; names the line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"task file {str(path)!r} cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place}: the line is not JSON ({error})") from None
        if not isinstance(values, dict):
            raise InputError(f"{place}: the line holds {type(values).__name__}, not an object")
        yield Row(place=place, number=number, values=values)


def read_hub(
    name: str, hub: str, config: str | None, split: str, translate: Callable[[Any], dict[str, Any]]
) -> Iterator[Row]:
    """Rows of a hub data set, translated from its columns.

    Raises:
        ConfigError: `datasets` is not installed, or the hub cannot be reached or refuses the set.
        InputError: A column is missing.
    """
    try:
        import datasets
    except ImportError:
        raise ConfigError(f"task {name} needs the datasets package: {INSTALL}") from None
    try:
        table = datasets.load_dataset(hub, config, split=split)
    except Exception as error:  # Whatever the client raises: no network, no such set, gated, ...
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"task {name}: {hub!r} could not be loaded from the hub ({reason}); "
            f"give the set as a local file with --data FILE.jsonl"
        ) from None
    yield from translated(table, f"{hub} {split}", translate)


def translated(table: Any, title: str, translate: Callable[[Any], dict[str, Any]]) -> Iterator[Row]:
    """Rows of a table that iterates over mappings.

    Raises:
        InputError: A column that `translate` asks for is missing.
    """
    for number, values in enumerate(table):
        place = f"{title}:{number}"
        try:
            yield Row(place=place, number=number, values=translate(values))
        except KeyError as error:
            raise InputError(
                f"{place}: column {error} is missing; the set has changed, use a file (--data)"
            ) from None
