"""Tasks, their items, and grades."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b, sha256
from typing import Any

INSTALL = "pip install 'easd[study]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One problem.

    Attributes:
        id: Unique within the task.
        prompt: The user's message; the text to continue where the task is no chat.
        answers: Gold answers; each of them is right.
        reference: A written gold solution that could follow the prompt, where the set has one.
        data: Further data for the grader: choices, tests, ...
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    reference: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A hash of the prompt's words, which identifies the problem in any file."""
        words = " ".join(self.prompt.split())
        return blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """The grade of one text.

    Attributes:
        answer: The answer that was read from the text, if any.
        correct: Whether it is right.
        failure: Why grading did not finish (a time-out, code that had to be stopped). Such an item
            counts as wrong and as failed.
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
        chat: Whether prompts go through the chat template; else they are continued as text.
        max_new_tokens: Usual length budget of an answer.
        stop: Texts that end an answer.
        source: Source of the rows: hub id, configuration and split, or file.
        data_hash: SHA-256 over the items.
        skipped: One line for every unusable row, with its place and the reason.
        unique_solution: Whether the reference is the only right text, so that the probability of
            solving an item is the product of the law over its tokens.
    """

    name: str
    items: tuple[Item, ...]
    system: str | None = None
    chat: bool = True
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    source: str
    data_hash: str
    skipped: tuple[str, ...] = ()
    unique_solution: bool = False
    grader: Grader

    def grade(self, item: Item, text: str) -> Grade:
        """Grades a generated text; no text makes it raise."""
        return self.grader(item, text)

    def part(self, first: int, end: int) -> Task:
        """Returns the task with its items from `first` up to, and without, `end`."""
        items = self.items[first:end]
        return replace(self, items=items, data_hash=hash_of(items))


def hash_of(items: tuple[Item, ...]) -> str:
    """Returns the SHA-256 over all fields of the items."""
    digest = sha256()
    for item in items:
        digest.update(json.dumps(asdict(item), sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()


_REASONING = r"(?:think|thinking|thought|reasoning)"
_REASONING_ENDS = re.compile(rf"</{_REASONING}>|\[/THINK\]|\u25c1/think\u25b7", re.I)
_REASONING_BEGINS = re.compile(rf"<{_REASONING}>|\[THINK\]|\u25c1think\u25b7", re.I)


def after_reasoning(text: str) -> str:
    """Returns the text after its last reasoning block, without an unclosed block.

    The opening tag may be missing, since many chat templates end the prompt with it.
    """
    if not any(mark in text for mark in "<[\u25c1"):
        return text
    text = _REASONING_ENDS.split(text)[-1]
    begin = _REASONING_BEGINS.search(text)
    return text[: begin.start()] if begin else text
