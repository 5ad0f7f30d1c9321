"""Rows into items: how each kind of task is asked."""

from __future__ import annotations

import re
from string import ascii_uppercase

from easd.tasks.rows import Row
from easd.tasks.task import Item

REASON_AND_BOX = "Please reason step by step, and put your final answer within \\boxed{}."
ANSWER_BRIEFLY = "Answer the question with a short phrase and nothing else."
WRITE_A_FUNCTION = "Reply with the complete function in one ```python block."
CHOOSE = "Put the letter of the right option within \\boxed{}."

_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")
_DOLLAR = re.compile(r"(?<!\\)\$")
_GSM8K_ENDING = re.compile(r"\n#### (.*)\s*\Z")


class Unusable(Exception):
    """A well-formed row that the task cannot use, such as one without a gold answer."""


def mathematics(row: Row, name: str) -> Item:
    """A problem whose answer is an expression."""
    # Dollar signs inside would split an expression in two when it is read.
    answers = tuple(_DOLLAR.sub("", answer) for answer in _answers(row))
    problem = row.text("problem")
    context = row.optional_text("context")
    tolerance = row.optional_text("error")
    return Item(
        id=_identity(row, name),
        prompt=f"{context}\n{problem}" if context else problem,
        answers=answers,
        reference=_boxed_solution(row.optional_text("solution"), answers[0]),
        data={"tolerance": tolerance} if tolerance else {},
    )


def choice(row: Row, name: str) -> Item:
    """A problem with lettered options; the answer is a letter."""
    choices = row.texts("choices")
    letters = ascii_uppercase[: len(choices)]
    answers = _answers(row)
    if not choices or not set(answers) <= set(letters):
        raise Unusable(f"answer {answers[0]!r} is none of the {len(choices)} options' letters")
    options = "\n".join(f"{x}. {text}" for x, text in zip(letters, choices, strict=True))
    return Item(
        id=_identity(row, name),
        prompt=f"{row.text('problem')}\n\n{options}\n\n{CHOOSE}",
        answers=answers,
        data={"choices": choices},
    )


def question(row: Row, name: str) -> Item:
    """A question with a short answer, known under one or several names."""
    answers = _answers(row)
    return Item(
        id=_identity(row, name),
        prompt=row.text("problem"),
        answers=answers,
        reference=answers[0],
    )


def completion(row: Row, name: str) -> Item:
    """A function to write, given its head and its docstring (HumanEval)."""
    head, body, entry_point = row.text("prompt"), row.text("answer"), row.text("entry_point")
    return Item(
        id=_identity(row, name),
        prompt=f"Complete this function. {WRITE_A_FUNCTION}\n\n```python\n{head.rstrip()}\n```",
        answers=(body,),
        reference=f"```python\n{head}{body.rstrip()}\n```",
        data={
            "head": head,
            "tests": f"{row.text('test')}\n\ncheck({entry_point})\n",
            "entry_point": entry_point,
        },
    )


def program(row: Row, name: str) -> Item:
    """A function to write, given a sentence and its tests (MBPP)."""
    tests = "\n".join(row.texts("test_list"))
    answers = _answers(row)
    return Item(
        id=_identity(row, name),
        prompt=f"{row.text('problem')} {WRITE_A_FUNCTION} It has to pass these tests:\n\n{tests}",
        answers=answers,
        reference=f"```python\n{answers[0].strip()}\n```",
        data={
            "head": "\n".join(row.texts("test_imports")),
            "tests": tests,
            "entry_point": row.text("entry_point"),
        },
    )


def _identity(row: Row, name: str) -> str:
    return row.optional_text("id") or f"{name}-{row.number}"


def _answers(row: Row) -> tuple[str, ...]:
    """Gold answers without repetitions.

    Raises:
        Unusable: There is none.
    """
    if "answers" in row.values:
        several = row.texts("answers")
    else:
        answer = row.required("answer")
        several = (str(answer) if isinstance(answer, int | float) else row.text("answer"),)
    kept = tuple(dict.fromkeys(answer.strip() for answer in several if answer.strip()))
    if not kept:
        raise Unusable("it has no gold answer")
    return kept


def _boxed_solution(solution: str | None, answer: str) -> str | None:
    """The solution as the prompt asks for it: with the answer in a box at its end."""
    if solution is None or "\\boxed" in solution:
        return solution
    plain = _GSM8K_ENDING.sub("", _CALCULATOR_NOTE.sub("", solution)).rstrip()
    return f"{plain}\nThe final answer is $\\boxed{{{answer}}}$."
