"""Finds the final answer in a mathematical text: what stands in its last box."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_JOINT = re.compile(r"[\s$]*(?:,|;|\band\b|\bor\b|\\text\s*\{\s*(?:and|or)\s*\})[\s$]*", re.I)


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, joined with those it is listed with; None without one.

    "\boxed{1} and \boxed{2}" is one answer of two values.
    """
    boxes = _boxes(text)
    if not boxes:
        return None
    answer = [boxes[-1][2]]
    for (_, end, content), (start, _, _) in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        if not _is_joint(text[end:start]):
            break
        answer.insert(0, content)
    return ", ".join(dict.fromkeys(answer))


def _is_joint(between: str) -> bool:
    """Whether only a comma, an `and` or both stand between two boxes."""
    rest, joints = between, 0
    while match := _JOINT.match(rest):
        rest, joints = rest[match.end() :], joints + 1
    return joints > 0 and not rest.strip(" $")


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every box whose braces close, outer boxes only."""
    boxes: list[tuple[int, int, str]] = []
    position = 0
    while opening := _BOX.search(text, position):
        end = _closing_brace(text, opening.end())
        if end is None:
            position = opening.end()
            continue
        boxes.append((opening.start(), end + 1, text[opening.end() : end].strip()))
        position = end + 1
    return boxes


def _closing_brace(text: str, start: int) -> int | None:
    """Index of the brace that closes the group which opened before `start`."""
    depth, index = 1, start
    while index < len(text):
        if text[index] == "\\":
            index += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
        index += 1
    return None
