"""Tasks, systems and seeds of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from easd.errors import ConfigError
from easd.tasks import Task, load_task

GRID = ("tasks", "systems", "seeds", "chunk")

_TASK = ("data", "limit", "first")
MOST = 2**31 - 1  # of seeds and indices in the tables of a run


class AnySystem(Protocol):
    """One way of decoding."""

    @property
    def name(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


S = TypeVar("S", bound=AnySystem)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A task and a range of its items; see `easd.tasks.load_task`."""

    name: str
    data: str | None = None
    limit: int | None = None
    first: int = 0
    options: Mapping[str, Any]

    def load(self, *, allow_code_execution: bool = False) -> Task:
        """Loads the items.

        Raises:
            EasdError: The task is unknown, or its data cannot be read.
        """
        return load_task(
            self.name,
            data=self.data,
            limit=self.limit,
            first=self.first,
            allow_code_execution=allow_code_execution,
            **self.options,
        )

    def to_dict(self) -> dict[str, Any]:
        """The mapping it was read from."""
        found = {name: getattr(self, name) for name in ("name", *_TASK)}
        return {**found, **self.options}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid(Generic[S]):
    """Systems, tasks and seeds.

    Attributes:
        seeds: each decodes every item once.
        chunk: number of items decoded together, and lost together if the run is killed.
    """

    tasks: tuple[TaskSpec, ...]
    systems: tuple[S, ...]
    seeds: tuple[int, ...] = (0,)
    chunk: int = 64

    def __post_init__(self) -> None:
        for what, names in (
            ("task", [task.name for task in self.tasks]),
            ("system", [system.name for system in self.systems]),
            ("seed", [str(seed) for seed in self.seeds]),
        ):
            if not names:
                raise ConfigError(f"there is no {what} to evaluate; name at least one")
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ConfigError(f"{what} {twice.pop()!r} is named twice; use distinct names")
        if self.chunk < 1:
            raise ConfigError(f"chunk = {self.chunk} decodes nothing; use 1 or more")

    def to_dict(self) -> dict[str, Any]:
        """The configuration in run.json, where systems have an entry of their own."""
        return {
            "tasks": [task.to_dict() for task in self.tasks],
            "seeds": list(self.seeds),
            "chunk": self.chunk,
        }


def parse_grid(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks, seeds and chunk from a mapping.

    Raises:
        ConfigError: One of them does not fit.
    """
    return {
        "tasks": tuple(parse_task(spec) for spec in listed(values.get("tasks") or (), "tasks")),
        "seeds": tuple(whole(seed, "seeds") for seed in listed(values.get("seeds", [0]), "seeds")),
        "chunk": whole(values.get("chunk", 64), "chunk"),
    }


def parse_task(spec: str | Mapping[str, Any]) -> TaskSpec:
    """A task from its name, `name:limit`, `name:first-end`, or a mapping with `name`.

    Raises:
        ConfigError: There is no name, or a number does not fit.
    """
    if isinstance(spec, str):
        name, _, items = spec.partition(":")
        first, limit = _slice(items, spec)
        return TaskSpec(name=name, first=first, limit=limit, options={})
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise ConfigError(f"task {spec!r} has no name; write a name, or a mapping with 'name'")
    known = {name: spec[name] for name in _TASK if spec.get(name) is not None}
    known |= {name: whole(known[name], name) for name in ("limit", "first") if name in known}
    options = {name: value for name, value in spec.items() if name not in ("name", *_TASK)}
    return TaskSpec(name=str(spec["name"]), options=options, **known)


def _slice(items: str, spec: str) -> tuple[int, int | None]:
    """`first` and `limit` from the text after a task's colon."""
    if not items:
        return 0, None
    first, dash, end = items.partition("-")
    if not dash or not first:
        return 0, whole(items, "limit")
    start, stop = whole(first, "first"), whole(end, "end")
    if stop <= start:
        raise ConfigError(
            f"task {spec!r} has no item: items are counted from 0, and {stop} is not above {start}"
        )
    return start, stop - start


def listed(value: Any, name: str) -> Sequence[Any]:
    """A list from YAML, or a list of a single value.

    Raises:
        ConfigError: It is empty.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value]
    if not value:
        raise ConfigError(f"{name} is empty; name at least one")
    return value


def whole(value: Any, name: str) -> int:
    """A whole number from YAML or a command line.

    Raises:
        ConfigError: It is not whole, or too large.
    """
    try:
        found = int(str(value))
    except ValueError:
        raise ConfigError(f"{name} = {value!r} is not a whole number") from None
    if abs(found) > MOST:
        raise ConfigError(f"{name} = {found} is too large; it can be {MOST:,} at most")
    return found
