"""Loads a task by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from easd.errors import ConfigError, InputError, shown
from easd.pairs import lab
from easd.tasks.catalogue import LAB_COUNT, TASKS, Kind, TaskInfo
from easd.tasks.graders import (
    check_code_execution,
    grade_choice,
    grade_code,
    grade_exact,
    grade_lab,
)
from easd.tasks.mathematics import check_math_verify, grade_mathematics
from easd.tasks.task import (
    ANSWER_BRIEFLY,
    REASON_AND_BOX,
    DataRow,
    Grader,
    Item,
    Task,
    Unusable,
    choice_item,
    completion_item,
    hash_of,
    mathematics_item,
    program_item,
    question_item,
    read_file,
    read_hub,
)

DATA_FOLDER = "EASD_DATA"
_MOST_ITEMS = 1_000_000


# Builder of items, grader and system message of each kind.
_KINDS: dict[Kind, tuple[Callable[[DataRow, str], Item], Grader, str | None]] = {
    "mathematics": (mathematics_item, grade_mathematics, REASON_AND_BOX),
    "choice": (choice_item, grade_choice, REASON_AND_BOX),
    "exact": (question_item, grade_exact, ANSWER_BRIEFLY),
    "completion": (completion_item, grade_code, None),
    "program": (program_item, grade_code, None),
}
_OWN_FILE_GRADERS: dict[str, Kind] = {"math": "mathematics", "choice": "choice", "exact": "exact"}


def load_task(
    name: str,
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    first: int = 0,
    allow_code_execution: bool = False,
    **options: Any,
) -> Task:
    """Loads a task by its name in `TASKS`.

    Rows come from `data`: a file, or a folder of files with the names in `TaskInfo.files`. Without
    `data` they come from the folder in the environment variable EASD_DATA, where it has the set,
    else from the hub.

    Args:
        name: The task.
        data: A `.jsonl` file or a folder of them.
        limit: Number of items; by default all, and 1,000 of a `lab` task.
        first: Number of usable items to leave out at the start.
        allow_code_execution: Required by tasks that are graded by running code.
        options: `seed` and `split` of a `lab` task (20, "test"); `grader` of task `file` ("math",
            "choice", "exact").

    Raises:
        ConfigError: An unknown task or option, a missing library, a hub that cannot be reached, or
            code that may not or cannot be run safely here.
        InputError: A file that cannot be read, a broken line, a missing key, a repeated id.
    """
    info = TASKS.get(name) or TASKS.get(lab.ALIASES.get(name, ""))
    if info is None:
        raise ConfigError(f"task {name!r} is not known; choose one of {', '.join(TASKS)}")
    if first < 0 or (limit is not None and limit < 1):
        raise ConfigError(f"first = {first}, limit = {limit}: count from 0, take 1 or more")
    if max(first, limit or 0) > _MOST_ITEMS:
        raise ConfigError(
            f"task {name}: {shown(max(first, limit or 0))} items are more than any task has "
            f"({_MOST_ITEMS:,}); take fewer"
        )
    if info.kind == "lab":
        return _lab_task(lab.ALIASES.get(name, name), limit or LAB_COUNT, first, data, **options)
    kind = _kind(name, info, options)
    if kind == "mathematics":
        check_math_verify(name)
    elif kind in ("completion", "program"):
        check_code_execution(name, allow_code_execution)
    rows, source = _rows(name, info, data)
    build, grader, system = _KINDS[kind]
    usable, skipped = _build(rows, build, name, source)
    used = usable[first:] if limit is None else usable[first : first + limit]
    if not used:
        raise InputError(f"task {name}: {source} has {len(usable)} usable items, first = {first}")
    return Task(
        name=name,
        items=used,
        system=system,
        max_new_tokens=info.max_new_tokens,
        source=source,
        data_hash=hash_of(used),
        skipped=skipped,
        grader=grader,
    )


def _kind(name: str, info: TaskInfo, options: dict[str, Any]) -> Kind:
    """Returns the task's kind; a user's file has the one of its `grader`.

    Raises:
        ConfigError: An option that the task does not have, or an unknown grader.
    """
    if name == "file":
        chosen = options.pop("grader", "math")
        if chosen not in _OWN_FILE_GRADERS:
            known = ", ".join(_OWN_FILE_GRADERS)
            raise ConfigError(f"grader = {chosen!r} is not known; choose one of {known}")
        kind = _OWN_FILE_GRADERS[chosen]
    else:
        kind = info.kind
    if options:
        raise ConfigError(f"task {name} has no option {', '.join(options)}")
    return kind


def _rows(name: str, info: TaskInfo, data: str | Path | None) -> tuple[Iterable[DataRow], str]:
    """Returns rows of the task and a description of their source."""
    path = _file(name, info, data)
    if path is not None:
        rows = list(read_file(path))
        # A file that mixes splits has a key for them; the task is one of the splits.
        used = [row for row in rows if row.values.get("split", info.split) == info.split]
        if len(used) == len(rows):
            return used, path.name
        return used, f"{path.name}, split {info.split} ({len(used)} of {len(rows)} rows)"
    if info.hub is None or info.translate is None:
        raise ConfigError(f"task {name} reads a file of yours; give it with --data FILE.jsonl")
    source = " ".join(part for part in (info.hub, info.config, info.split) if part)
    return read_hub(name, info.hub, info.config, info.split, info.translate), source


def _file(name: str, info: TaskInfo, data: str | Path | None) -> Path | None:
    """Returns the local file to read; None for the hub.

    Raises:
        InputError: `data` was given and does not exist or does not hold the set.
    """
    if data is None:
        folder = os.environ.get(DATA_FOLDER)
        return _in_folder(Path(folder), info) if folder else None
    path = Path(data)
    if not path.is_dir():
        return path
    found = _in_folder(path, info)
    if found is None:
        wanted = " or ".join(info.files) or "such a file; give the file itself"
        raise InputError(f"task {name}: folder {str(path)!r} has no {wanted}")
    return found


def _in_folder(folder: Path, info: TaskInfo) -> Path | None:
    return next((folder / file for file in info.files if (folder / file).is_file()), None)


def _build(
    rows: Iterable[DataRow], build: Callable[[DataRow, str], Item], name: str, source: str
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Returns items, and a line for every unusable row.

    Raises:
        InputError: Two rows have one id, or a row lacks a key.
    """
    found: dict[str, Item] = {}
    places: dict[str, str] = {}
    skipped: list[str] = []
    for row in rows:
        try:
            item = build(row, name)
        except Unusable as reason:
            skipped.append(f"{row.place}: {reason}")
            continue
        if item.id in found:
            raise InputError(f"{row.place}: id {item.id!r} is that of {places[item.id]} too")
        found[item.id] = item
        places[item.id] = row.place
    if not found and not skipped:
        raise InputError(f"task {name}: {source} has no rows")
    return tuple(found.values()), tuple(skipped)


def _lab_task(
    name: str,
    limit: int,
    first: int,
    data: str | Path | None,
    *,
    seed: int = 20,
    split: lab.Split = "test",
    **unknown: Any,
) -> Task:
    """Returns a task of generated problems, whose prompts are continued as text."""
    if unknown or data is not None:
        given = ", ".join([*unknown, *(["data"] if data is not None else [])])
        raise ConfigError(f"task {name} is generated, with options seed and split; not {given}")
    if split not in get_args(lab.Split):
        raise ConfigError(f"split = {split!r}; choose one of {', '.join(get_args(lab.Split))}")
    problems = islice(lab.stream(name, seed, split), first, first + limit)
    generated = tuple(
        Item(id=each.id, prompt=each.prompt, answers=(each.answer,), reference=each.solution)
        for each in problems
    )
    return Task(
        name=name,
        items=generated,
        chat=False,
        max_new_tokens=lab.MAX_NEW_TOKENS,
        source=f"easd.pairs.lab {name}, split {split}, seed {seed}",
        data_hash=hash_of(generated),
        unique_solution=True,
        grader=grade_lab,
    )
