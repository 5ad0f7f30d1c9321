"""Finds the final answer in a mathematical text: what stands in its last box."""

from __future__ import annotations

import re

_BRACES = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\.|[{}]", re.S)
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_NUMBER_WORDS = r"(?!pi\b|sqrt|dozen|hundred|thousand|million|billion|trillion)"
_COUNTED = re.compile(
    r"((?:\\?\$)?[-+]?[\d.,]+)[\s~]*+"
    rf"(?:\\(?:text|mathrm|textbf)\s*\{{\s*+{_NUMBER_WORDS}[A-Za-z\s.]*\}}"
    rf"|{_NUMBER_WORDS}[A-Za-z]{{2,}}(?:\s+[A-Za-z]+)*)\.?"
)
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


def without_words(answer: str) -> str:
    """A bare number where the answer is a number and what it counts; else the answer itself."""
    while wrapped := _WRAPPED.fullmatch(answer):
        answer = wrapped[1].strip()
    counted = _COUNTED.fullmatch(answer)
    return counted[1] if counted else answer


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every box whose braces close, outer boxes only."""
    boxes: list[tuple[int, int, str]] = []
    open_groups: list[re.Match[str]] = []
    for token in _BRACES.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            open_groups.append(token)
        elif token[0] == "}" and open_groups:
            opening = open_groups.pop()
            if opening[0] == "{":
                continue
            while boxes and boxes[-1][0] > opening.start():
                boxes.pop()
            content = text[opening.end() : token.start()].strip()
            boxes.append((opening.start(), token.end(), content))
    return boxes
