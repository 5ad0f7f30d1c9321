"""Extracts the program from a text, with fenced blocks of Markdown as models write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_OPENING = re.compile(r"([ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?)(`{3,}|~{3,})([^`]*)$")
_LANGUAGE = re.compile(r"\{?\.?[\w.+#-]*\}?(?:[\s{].*=.*)?")
_PYTHON = re.compile(r"\s*\{?\.?(?:py|python|ipython)?[\d.]*\b", re.I)
# Strings and comments, which may contain quotation marks, and the beginnings of triple quotes.
_QUOTED = re.compile(r"""\"{3}|'{3}|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|\#[^\n]*""")
_STRING_ENDS = {mark: re.compile(rf"(?:[^\\]|\\.)*?{mark}", re.S) for mark in ('"""', "'''")}
_TRAILING = re.compile(r"(?<=[^`~\s])(?:`{3,}|~{3,})\s*\Z")
_CODE_BEGINS = re.compile(
    r"^(?:from\s+[\w.]+\s+import\b|import\s|def\s|class\s|async\s+def\s|@\w)", re.M
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its code, the info of its opening fence, and its first and last line."""

    code: str
    info: str
    first: int
    last: int


def extract(text: str, entry_point: str) -> str | None:
    """Returns the last block, or else the text, that defines the function, or the last block.

    Returns None where the text continues a given head instead (`continuation`).
    """
    defines = re.compile(rf"^\s*(?:async\s+)?def\s+{re.escape(entry_point)}\b", re.M)
    found = list(blocks(text))
    for block in reversed(found):
        if defines.search(block.code):
            return block.code
    for part in _outside(text, found):
        if defines.search(part):
            begin = _CODE_BEGINS.search(part)
            return part[begin.start() :] if begin else part
    if not found or _is_body(_before(text, found)):
        return None
    code = _chosen(found)
    return None if _is_body(code) else code


def continuation(text: str) -> str:
    """Returns the rest of a function whose head was given: up to the first fence, or in a block."""
    found = list(blocks(text))
    before = _before(text, found)
    if not found or _is_body(before):
        return before
    return _chosen(found)


def blocks(text: str) -> Iterator[Block]:
    """Yields fenced blocks in order; an unclosed one ends with the text."""
    lines = text.splitlines(keepends=True)
    number = 0
    while number < len(lines):
        opening = _OPENING.match(lines[number].rstrip())
        if opening is None:
            number += 1
            continue
        last, ending = _closing(lines, number + 1, opening)
        width = len(opening[1])
        code = "".join(_dedented(line, width) for line in lines[number + 1 : last]) + ending
        yield Block(code, opening[3].strip(), number, min(last, len(lines) - 1))
        # A closing fence that names a language also opens the next block.
        again = last < len(lines) and _OPENING.match(lines[last].rstrip())
        names = again and again[3].strip() and _LANGUAGE.fullmatch(again[3].strip())
        number = last if names else last + 1


def _closing(lines: list[str], begin: int, opening: re.Match[str]) -> tuple[int, str]:
    """Returns the line that ends a block, and the code before a fence at that line's end.

    A fence within a string, such as a docstring's example, counts only if no other fence follows.
    """
    mark, most = opening[2], len(opening[1].expandtabs()) + 3
    closing = re.compile(rf"([ \t>]*){re.escape(mark)}")
    at_end = re.compile(rf"(.*[^`~\s].*?){re.escape(mark)}[ \t]*$", re.S)
    within: tuple[int, str] | None = None
    inside: str | None = None
    for number in range(begin, len(lines)):
        fence = closing.match(lines[number])
        trailing = None if fence else at_end.fullmatch(lines[number].rstrip())
        if trailing or (fence and len(fence[1].expandtabs()) <= most):
            ending = f"{trailing[1].rstrip()}\n" if trailing else ""
            if _open_string(ending, inside) is None:
                return number, ending
            within = within or (number, ending)
        inside = _open_string(lines[number], inside)
    return within or (len(lines), "")


def _open_string(line: str, inside: str | None) -> str | None:
    """Returns the triple quotes of the string open after a line, `inside` being those before it."""
    position = 0
    while True:
        if inside is None:
            found = _QUOTED.search(line, position)
            if found is None:
                return None
            inside = found[0] if found[0] in _STRING_ENDS else None
        else:
            found = _STRING_ENDS[inside].match(line, position)
            if found is None:
                return inside
            inside = None
        position = found.end()


def _dedented(line: str, width: int) -> str:
    """Removes up to `width` characters of the fence's indentation from a line."""
    return re.sub(rf"\A[ \t>]{{0,{width}}}", "", line)


def _chosen(found: list[Block]) -> str:
    """Returns the last block of Python or of no language, else the last."""
    python = [block for block in found if not block.info or _PYTHON.match(block.info)]
    return (python or found)[-1].code


def _before(text: str, found: list[Block]) -> str:
    lines = text.splitlines(keepends=True)
    return _TRAILING.sub("\n", "".join(lines[: found[0].first]) if found else text)


def _outside(text: str, found: list[Block]) -> Iterator[str]:
    """Yields the text between blocks."""
    lines, begin = text.splitlines(keepends=True), 0
    for block in found:
        yield "".join(lines[begin : block.first])
        begin = block.last + 1
    yield _TRAILING.sub("\n", "".join(lines[begin:]))


def _is_body(code: str) -> bool:
    """Returns whether the first line is indented, as in the body of a function."""
    first = next((line for line in code.splitlines() if line.strip()), "")
    return first[:1] in (" ", "\t")
