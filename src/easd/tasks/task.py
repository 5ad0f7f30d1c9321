"""Tasks and items, and the conversion of rows of a file or of the hub to items.

A row has `problem`, `answer` or `answers`, and further keys by its kind: `solution`, `choices`,
`test`, `entry_point`. Without an `id` the item is named after the task and the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b, sha256
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from easd.errors import ConfigError, InputError
from easd.parsing import parse_json


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


INSTALL = "pip install 'easd[study]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRow:
    """One row, with its `place` for error messages, such as `gsm8k.jsonl:17`."""

    place: str
    number: int
    values: dict[str, Any]

    def text(self, key: str) -> str:
        """Returns a required string.

        Raises:
            InputError: The key is missing, or its value is not a string.
        """
        value = self.required(key)
        if not isinstance(value, str):
            raise InputError(f"{self.place}: {key!r} is {value!r}; it has to be a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Returns a required list of strings.

        Raises:
            InputError: The key is missing, or its value is not a list of strings.
        """
        value = self.required(key)
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise InputError(f"{self.place}: {key!r} is {value!r}; it has to be a list of strings")
        return tuple(value)

    def required(self, key: str) -> Any:
        """Returns a required value.

        Raises:
            InputError: The key is missing.
        """
        if key not in self.values:
            raise InputError(f"{self.place}: key {key!r} is missing")
        return self.values[key]

    def optional_text(self, key: str) -> str | None:
        """Returns a string, or None where the key is missing or empty."""
        return self.text(key) if self.values.get(key) else None


def read_file(path: Path) -> Iterator[DataRow]:
    """Yields rows of a file with one JSON object per line, without blank lines.

    Raises:
        InputError: The file cannot be read, or a line holds no JSON object.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"task file {str(path)!r} cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            values = parse_json(line)
        except ValueError as error:
            raise InputError(f"{place}: the line is not JSON ({error})") from None
        if not isinstance(values, dict):
            raise InputError(f"{place}: the line holds {type(values).__name__}, not an object")
        yield DataRow(place=place, number=number, values=values)


def read_hub(
    name: str, hub: str, config: str | None, split: str, translate: Callable[[Any], dict[str, Any]]
) -> Iterator[DataRow]:
    """Yields rows of a hub data set, translated from its columns.

    Raises:
        ConfigError: `datasets` is not installed, or the hub cannot be reached or refuses the set.
        InputError: A column is missing.
    """
    try:
        import datasets
    except ImportError:
        raise ConfigError(f"task {name} needs the datasets package: {INSTALL}") from None
    try:
        table = datasets.load_dataset(hub, config, split=split)
    except Exception as error:  # Whatever the client raises: no network, no such set, gated, ...
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"task {name}: {hub!r} could not be loaded from the hub ({reason}); "
            f"give the set as a local file with --data FILE.jsonl"
        ) from None
    yield from translated(table, f"{hub} {split}", translate)


def translated(
    table: Any, title: str, translate: Callable[[Any], dict[str, Any]]
) -> Iterator[DataRow]:
    """Yields rows of a table that iterates over mappings.

    Raises:
        InputError: A column that `translate` asks for is missing.
    """
    for number, values in enumerate(table):
        place = f"{title}:{number}"
        try:
            yield DataRow(place=place, number=number, values=translate(values))
        except KeyError as error:
            raise InputError(
                f"{place}: column {error} is missing; the set has changed, use a file (--data)"
            ) from None


REASON_AND_BOX = "Please reason step by step, and put your final answer within \\boxed{}."
ANSWER_BRIEFLY = "Answer the question with a short phrase and nothing else."
WRITE_A_FUNCTION = "Reply with the complete function in one ```python block."
CHOOSE = "Put the letter of the right option within \\boxed{}."

_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")
_DOLLAR = re.compile(r"(?<!\\)\$")
_GSM8K_ENDING = re.compile(r"\n#### (.*)\s*\Z")


class Unusable(Exception):
    """A well-formed row that the task cannot use, such as one without a gold answer."""


def mathematics_item(row: DataRow, name: str) -> Item:
    """Builds a problem whose answer is an expression."""
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


def choice_item(row: DataRow, name: str) -> Item:
    """Builds a problem with lettered options, whose answer is a letter."""
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


def question_item(row: DataRow, name: str) -> Item:
    """Builds a question with a short answer, known under one or several names."""
    answers, prompt = _answers(row), row.text("problem")
    return Item(id=_identity(row, name), prompt=prompt, answers=answers, reference=answers[0])


def completion_item(row: DataRow, name: str) -> Item:
    """Builds a function to write, given its head and its docstring (HumanEval)."""
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


def program_item(row: DataRow, name: str) -> Item:
    """Builds a function to write, given a sentence and its tests (MBPP)."""
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


def _identity(row: DataRow, name: str) -> str:
    return row.optional_text("id") or f"{name}-{row.number}"


def _answers(row: DataRow) -> tuple[str, ...]:
    """Returns gold answers without repetitions.

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
    """Returns the solution as the prompt asks for it, with the answer in a box at its end."""
    if solution is None or "\\boxed" in solution:
        return solution
    plain = _GSM8K_ENDING.sub("", _CALCULATOR_NOTE.sub("", solution)).rstrip()
    return f"{plain}\nThe final answer is $\\boxed{{{answer}}}$."
