"""The program of a process that compares mathematical answers with math-verify.

It runs without importing this package. It reads one JSON object per line (`gold`: texts, `answers`:
readings of one answer, `boxed`: whether they were in a box, `tolerance`) and replies to each with
one line (`answer`, `correct`). Its parent kills it when a reply takes too long: math-verify's
time-outs need the main thread of the caller and cannot interrupt every computation.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

MEMORY = 4 << 30  # Bytes.
PLACES = 6  # Decimal places in which decimals must agree.
RELATIVE = 1.01e-5  # Relative difference that is allowed besides: 0.033333 is 1/30.


def main() -> None:
    """Replies to requests until standard input ends."""
    _limit_memory()
    logging.disable(logging.CRITICAL)
    from math_verify import grader, parse, verify

    numeric_eq = grader.sympy_numeric_eq

    def near(gold: Any, answer: Any, *args: Any, **options: Any) -> bool:
        """Adds a relative test to the library's comparison, for which small numbers are equal."""
        return numeric_eq(gold, answer, *args, **options) and not _far(gold, answer)

    # The library also calls it for numbers in sets, tuples, intervals and matrices.
    grader.sympy_numeric_eq = near

    def right(gold: str, answer: list[Any], tolerance: str | None) -> bool:
        known = parse(f"\\boxed{{{gold}}}", parsing_timeout=0)
        return verify(known, answer, timeout_seconds=None) or _within(gold, answer, tolerance)

    def grade(request: dict[str, Any]) -> dict[str, Any]:
        form = "\\boxed{{{}}}" if request["boxed"] else "{}"
        read = [parse(form.format(text), parsing_timeout=0) for text in request["answers"]]
        correct = any(
            right(gold, answer, request["tolerance"]) for answer in read for gold in request["gold"]
        )
        return {"answer": str(read[0][-1]) if read[0] else None, "correct": correct}

    replies, sys.stdout = sys.stdout, sys.stderr  # Nothing else may print among the replies.
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        try:
            reply = grade(json.loads(line))
        except (Exception, RecursionError, MemoryError) as error:
            reply = {"failure": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def _far(gold: Any, answer: Any) -> bool:
    """Returns whether two numbers differ by more than rounding, relative to their size."""
    try:
        of_gold, of_answer = complex(gold.doit()), complex(answer.doit())
    except (TypeError, ValueError, AttributeError, OverflowError):  # They are not numbers.
        return False
    return abs(of_gold - of_answer) > RELATIVE * abs(of_gold)


def _within(gold: str, answer: list[Any], tolerance: str | None) -> bool:
    """Returns whether a number is within the data set's tolerance of the gold one."""
    if tolerance is None or not answer:
        return False
    try:
        return abs(float(answer[0]) - float(gold)) <= float(tolerance)
    except (TypeError, ValueError):
        return False


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # This platform has no such limits.
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    main()
