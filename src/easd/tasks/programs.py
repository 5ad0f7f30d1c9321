"""Grades code by running it against its tests in the sandbox."""

from __future__ import annotations

import re

from easd.errors import ConfigError
from easd.tasks import sandbox
from easd.tasks.task import Grade, Item

_BLOCK = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.S | re.I)


def check_code_execution(name: str, allowed: bool) -> None:
    """Refuses to load a task whose grading may not, or cannot safely, run here.

    Raises:
        ConfigError: Code execution was not allowed, or this system cannot confine it.
    """
    if not allowed:
        raise ConfigError(
            f"task {name} is graded by running code that a model wrote, on this machine; "
            "if that is what you want, say so with --allow-code-execution"
        )
    missing = sandbox.missing()
    if missing:
        raise ConfigError(
            f"task {name} cannot run code safely here: {missing}; "
            "use a Linux machine or container with Landlock (kernel 5.13 or later)"
        )
    trial = sandbox.run(["import decimal, hashlib"])
    if not trial.passed:
        reason = trial.failure or trial.error
        raise ConfigError(f"task {name} cannot run code here: the sandbox fails with {reason}")


def grade_code(item: Item, text: str) -> Grade:
    """Runs the function that the text defines, or completes, against the item's tests."""
    code = extract(text, item.data["entry_point"])
    if code is None:
        # No definition of its own: the text continues the given head.
        parts = [item.data["head"] + text, item.data["tests"]]
    else:
        parts = [item.data["head"], code, item.data["tests"]]
    try:
        outcome = sandbox.run(parts)
    except OSError as error:
        reason = f"the sandbox could not be started ({error})"
        return Grade(answer=code, correct=False, failure=reason)
    return Grade(
        answer=text if code is None else code, correct=outcome.passed, failure=outcome.failure
    )


def extract(text: str, entry_point: str) -> str | None:
    """The program in a text: the last block that defines the function, else what defines it."""
    defines = re.compile(rf"^\s*(?:async\s+)?def\s+{re.escape(entry_point)}\b", re.M)
    blocks = [found[1] for found in _BLOCK.finditer(text)]
    for block in reversed(blocks):
        if defines.search(block):
            return block
    if blocks:
        return blocks[-1]
    return text if defines.search(text) else None
