"""A process of its own that compares mathematical answers with math-verify.

Run as a program, it never imports this package. It reads one JSON object a line (`gold`: texts,
`answer`: text, `boxed`: whether that is the content of a box, `tolerance`) and answers each with
one line (`answer`, `correct`). Its parent ends it when an answer takes too long: math-verify's own
time-outs need the main thread of the caller, and cannot interrupt every computation.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

MEMORY = 4 << 30  # bytes


def main() -> None:
    """Serves requests until standard input ends."""
    _limit_memory()
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    def grade(request: dict[str, Any]) -> dict[str, Any]:
        text = f"\\boxed{{{request['answer']}}}" if request["boxed"] else request["answer"]
        said = parse(text, parsing_timeout=0)
        correct = any(
            verify(parse(f"\\boxed{{{gold}}}", parsing_timeout=0), said, timeout_seconds=None)
            or _within(gold, said, request["tolerance"])
            for gold in request["gold"]
        )
        return {"answer": str(said[-1]) if said else None, "correct": correct}

    replies, sys.stdout = sys.stdout, sys.stderr  # Nothing else may print among the replies.
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        try:
            reply = grade(json.loads(line))
        except (Exception, RecursionError, MemoryError) as error:
            reply = {"failure": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def _within(gold: str, said: list[Any], tolerance: str | None) -> bool:
    """Whether a number is as near to the gold one as the set allows."""
    if tolerance is None or not said:
        return False
    try:
        return abs(float(said[0]) - float(gold)) <= float(tolerance)
    except (TypeError, ValueError):
        return False


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Not on this platform.
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    main()
