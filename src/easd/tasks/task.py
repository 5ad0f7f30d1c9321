"""A task, its items, and what grading says of one text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One problem.

    Attributes:
        id: Unique within the task.
        prompt: What the user's turn says; the raw text to continue where the task is no chat.
        answers: Gold answers; any one of them is right.
        reference: A written gold solution that could follow the prompt, where the set brings one.
        data: What else the grader needs: choices, tests, ...
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    reference: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """What grading says of one text.

    Attributes:
        answer: What was read from the text; None where nothing could be.
        correct: Whether it is right.
        failure: Why grading itself did not finish (a time-out, code that had to be stopped). Such
            an item counts as wrong and as failed.
    """

    answer: str | None
    correct: bool
    failure: str | None = None


Grader = Callable[[Item, str], Grade]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A data set, ready to be decoded and graded.

    Attributes:
        name: Name in `TASKS`.
        items: The problems, in the set's order.
        system: System message of the chat, if the set's convention has one.
        chat: Whether prompts go through the chat template; without, they are continued as text.
        max_new_tokens: Usual length budget of an answer.
        stop: Texts that end an answer.
        source: Where the rows came from: hub id, configuration and split, or file.
        data_hash: SHA-256 over the items, so that two runs can tell whether they saw the same.
        skipped: One line for every row that cannot be used, with its place and the reason.
        unique_solution: Whether the reference is the only right text, so that the probability of
            solving an item is the product of the law over its tokens.
        grader: Reads and judges a text.
    """

    name: str
    items: tuple[Item, ...]
    system: str | None
    chat: bool
    max_new_tokens: int
    stop: tuple[str, ...]
    source: str
    data_hash: str
    skipped: tuple[str, ...]
    unique_solution: bool
    grader: Grader

    def grade(self, item: Item, text: str) -> Grade:
        """Judges a generated text; never raises for what the text says."""
        return self.grader(item, text)
