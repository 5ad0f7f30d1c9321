"""Finds the final answer of a mathematical text and grades it with math-verify.

math-verify runs in a separate process (`math_worker`), which can be killed when it hangs.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from easd.errors import ConfigError
from easd.tasks.numbers import Number, read_number, same_number, spell_out, without_signs
from easd.tasks.task import INSTALL, Grade, Item, after_reasoning

TIMEOUT = 10.0  # Seconds.
TAIL = 2000  # Characters at the end of a text without a box, in which the answer is searched.
START_TIMEOUT = 120.0  # Seconds; the library is slow to import on a busy machine.


def check_math_verify(name: str) -> None:
    """Checks that mathematics can be graded.

    Raises:
        ConfigError: math-verify is not installed.
    """
    if find_spec("math_verify") is None:
        raise ConfigError(f"task {name} is graded with math-verify, which is missing: {INSTALL}")


def grade_mathematics(item: Item, text: str) -> Grade:
    """Compares the last boxed expression, or without a box what math-verify finds in the text.

    Equal spelling is right without parsing, which also covers sentences.
    """
    text = after_reasoning(text)
    boxed = last_boxed(text)
    tolerance = item.data.get("tolerance")
    if boxed is None:
        gold = [reading for answer in item.answers for reading in _readings(answer)]
        asked = {"gold": gold, "answers": [spell_out(text[-TAIL:])]}
        reply = _worker.ask({**asked, "boxed": False, "tolerance": tolerance})
    elif any(_equal(gold, boxed) for gold in item.answers):
        reply = {"answer": boxed, "correct": True}
    elif tolerance is None and all(map(_plain_number, [boxed, *item.answers])):
        reply = {"answer": boxed, "correct": False}
    else:
        reply = {"answer": boxed, **_compare(item.answers, boxed, tolerance)}
    if "failure" in reply:
        return Grade(answer=boxed, correct=False, failure=reply["failure"])
    return Grade(answer=reply["answer"], correct=reply["correct"])


def _equal(gold: str, answer: str) -> bool:
    """Returns whether both are spelled alike or the same number."""
    if _spelling(gold) == _spelling(answer):
        return True
    known, number = read_number(gold), _number(answer)
    return known is not None and number is not None and same_number(known, number)


def _number(answer: str) -> Number | None:
    return read_number(answer) or read_number(without_words(answer))


def _plain_number(expression: str) -> bool:
    """Returns whether an expression can only be read as one number."""
    number = _number(expression)
    return number is not None and not number.scientific


def _compare(answers: tuple[str, ...], boxed: str, tolerance: str | None) -> dict[str, Any]:
    """Compares with each gold answer by math-verify."""
    reply: dict[str, Any] = {"correct": False}
    for gold in answers:
        known, answer = _aligned(without_signs(gold), without_signs(without_words(boxed)))
        readings = {
            "gold": _readings(_as_variable(known)),
            "answers": _readings(_without_unit(answer)),
        }
        reply = _worker.ask({**readings, "boxed": True, "tolerance": tolerance})
        if reply.get("correct") or "failure" in reply:
            break
    return {key: reply[key] for key in ("correct", "failure") if key in reply}


def _readings(expression: str) -> list[str]:
    """Returns an exact number in a form that every parser reads alike, else the expression.

    `2e-1` has two readings: a number in scientific notation, and a difference.
    """
    number = read_number(expression)
    if number is None or number.percent or not (number.exact or number.scientific):
        return [expression]
    return [expression, number.spelled] if number.scientific else [number.spelled]


_LETTERS_AT_END = re.compile(r"([\d}]|(?=\s))(\s*)([A-Za-z]{1,2})\s*\Z")
_SHORT_UNITS = {"mm", "cm", "km", "mg", "kg", "ml", "mL", "ft", "lb", "hr"}


def _as_variable(expression: str) -> str:
    """Puts braces around letters at the end, else units for math-verify: `3 t`, `2ab`."""
    found = _LETTERS_AT_END.search(expression, max(0, len(expression) - 8))
    if found is None or (found[2] and found[3] in _SHORT_UNITS):
        return expression
    return expression[: found.end(2)] + "".join(f"{{{letter}}}" for letter in found[3])


def _without_unit(expression: str) -> str:
    """Returns the number before a unit of one or two letters; else the letters are variables."""
    found = _UNIT.fullmatch(expression)
    return found[1] if found else _as_variable(expression)


def _spelling(expression: str) -> str:
    joined = _SPACE.sub("", expression).replace("\\left", "").replace("\\right", "")
    return joined.rstrip(".")


_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_UNIT = re.compile(
    r"([-+]?[\d.,]*\d)(?:[\s~]*(?:[cmkd]?m|[mk]?g|lb|ft|hr?|min|s|[mcd]?[lL])|[\s~]+[A-Za-z])\.?"
)
_DOTS = re.compile(r"\\(?:l|c|v)?dots[bcmio]?(?![A-Za-z])|\.\.\.|\u2026")
_DOTS_OF_DECIMAL = re.compile(rf"(\d\.\d+)\s*(?:{_DOTS.pattern})")
_GAP = r"\xi "  # The variable that stands for what dots leave out.


def _aligned(gold: str, answer: str) -> tuple[str, str]:
    """Replaces dots by a variable in both, after as many terms as both spell out.

    math-verify drops dots and would then compare only the last terms of two sequences.
    """
    gold, answer = (_DOTS_OF_DECIMAL.sub(r"\1", each) for each in (gold, answer))
    if _DOTS.search(gold) and _DOTS.search(answer):
        (gold, gold_end), (answer, answer_end) = (
            _DOTS.split(e, maxsplit=1) for e in (gold, answer)
        )
        terms = [gold.split(","), answer.split(",")]
        shown = min(map(len, terms)) - 1  # The last is the empty text before the dots.
        if shown > 1:
            gold, answer = (",".join([*each[:shown], ""]) for each in terms)
        gold, answer = gold + _GAP + gold_end, answer + _GAP + answer_end
    return _DOTS.sub(re.escape(_GAP), gold), _DOTS.sub(re.escape(_GAP), answer)


class _Worker:
    """The helper process: started on first use, replaced when it hangs or dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._replies: Queue[str] = Queue()
        self._owner = 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a request and returns its reply, or a `failure` if none comes in time."""
        with self._lock:
            if self._process is None or self._owner != os.getpid():
                self._start()
            process, replies = self._process, self._replies
            assert process is not None
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                return json.loads(replies.get(timeout=TIMEOUT))
            except Empty:
                reason = f"the comparison took more than {TIMEOUT:g} s"
            except (OSError, ValueError):
                reason = "the comparison ended its process"
            self.stop()
            return {"failure": reason}

    def stop(self) -> None:
        """Ends the process; the next request starts another."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(OSError):  # Unsent text has nowhere to go.
                    pipe.close()

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._process, self._owner, self._replies = process, os.getpid(), Queue()
        threading.Thread(target=_pump, args=(process, self._replies), daemon=True).start()
        try:
            started = self._replies.get(timeout=START_TIMEOUT)
        except Empty:
            started = ""
        if not started:
            self.stop()
            raise ConfigError(
                f"math-verify does not start; try `{sys.executable} -c 'import math_verify'`"
            )


def _pump(process: subprocess.Popen[str], replies: Queue[str]) -> None:
    """Moves lines from a pipe to a queue, which can be read with a timeout."""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            replies.put(line)
    except ValueError:  # The pipe was closed meanwhile.
        return
    replies.put("")


_worker = _Worker()
atexit.register(_worker.stop)


_BRACES = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\.|[{}]", re.S)
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_NUMBER_WORDS = r"(?!pi\b|sqrt|dozen|hundred|thousand|million|billion|trillion)"
_COUNTED = re.compile(
    r"((?:\\?\$)?[-+]?[\d.,]+)(?:[\s~]|\\[,;: ])*+"
    rf"(?:\\(?:text|mathrm|textbf)\s*\{{\s*+{_NUMBER_WORDS}[A-Za-z\s.]*\}}"
    rf"|(?:(?<=[\s~])|(?=[A-Za-z]{{4}})){_NUMBER_WORDS}[A-Za-z]{{2,}}(?:\s+[A-Za-z]+)*)\.?"
)
_JOINT = re.compile(r"[\s$]*(?:,|;|\band\b|\bor\b|\\text\s*\{\s*(?:and|or)\s*\})[\s$]*", re.I)


def last_boxed(text: str) -> str | None:
    r"""Returns the content of the last `\boxed{...}`, or of the list of boxes that it ends, if any.

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
    """Returns whether the text between two boxes is a comma, an `and` or both."""
    rest, joints = between, 0
    while match := _JOINT.match(rest):
        rest, joints = rest[match.end() :], joints + 1
    return joints > 0 and not rest.strip(" $")


def without_words(answer: str) -> str:
    """Returns the number of an answer that is a number and the words for what it counts.

    Any other answer is returned unchanged.
    """
    while wrapped := _WRAPPED.fullmatch(answer):
        answer = wrapped[1].strip()
    counted = _COUNTED.fullmatch(answer)
    return counted[1] if counted else answer


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Returns start, end and content of every outer box whose braces close."""
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
