"""Gold answers graded against themselves, and against others' answers, on whole sets."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from benchmark_files import benchmark_files

pytest.importorskip("math_verify")

from easd.tasks import Item, Task, load_task
from easd.tasks.mathematics import _worker

MATHEMATICS = ("math500", "olympiadbench", "gsm8k", "svamp", "aime24", "limr", "limo")
ROWS = {
    "math500": 500,
    "olympiadbench": 675,
    "gsm8k": 1319,
    "svamp": 1000,
    "aime24": 30,
    "limr": 1389,
    "limo": 40,
    "mmlu": 1000,
    "arc-easy": 2376,
    "nq-open": 3610,
    "humaneval": 164,
    "mbpp": 257,
}
# x=5 answers a question whose gold answer is 5.
SAME_BUT_SPELLED_DIFFERENTLY = {("test/algebra/1837.json", "x=5")}


def load(name: str) -> Task:
    return load_task(name, data=benchmark_files(), allow_code_execution=True)


def wrong(task: Task, text_of: Callable[[Item], str | None], stride: int = 1) -> list[str]:
    """Ids of the items whose text is not graded right."""
    texts = [(item, text_of(item)) for item in task.items[::stride]]
    graded = [(item, task.grade(item, text)) for item, text in texts if text is not None]
    assert graded
    return [item.id for item, grade in graded if not grade.correct or grade.failure]


def boxed(answer: str) -> str:
    return f"Adding up, we see that the answer is $\\boxed{{{answer}}}$."


@pytest.mark.parametrize("name", ROWS)
def test_every_row_can_be_used(name: str) -> None:
    task = load(name)
    assert len(task.items) == ROWS[name]
    assert task.skipped == ()


@pytest.mark.parametrize("name", MATHEMATICS)
def test_gold_answers_of_mathematics_are_right(name: str) -> None:
    task = load(name)
    for answer_of in (lambda item: boxed(item.answers[0]), lambda item: item.reference):
        if answer_of(task.items[0]) is not None:
            assert wrong(task, answer_of) == []


@pytest.mark.parametrize("name", MATHEMATICS)
def test_math_verify_itself_takes_gold_answers_as_right(name: str) -> None:
    """Without the short cut for equal spelling, so that other spellings have a chance."""
    items, refused = load(name).items, []
    for item in items[:: max(1, len(items) // 150)]:
        reply = _worker.ask(
            {"gold": item.answers, "answers": [item.answers[0]], "boxed": True, "tolerance": None}
        )
        if not reply.get("correct"):
            refused.append((item.id, reply))
    assert refused == []


@pytest.mark.parametrize("name", MATHEMATICS)
def test_another_items_answer_is_wrong(name: str) -> None:
    items = load(name).items
    stride = max(1, len(items) // 100)
    grade = load(name).grade
    taken = [
        (item.id, other.answers[0])
        for item, other in zip(items[::stride], items[1::stride], strict=False)
        if "".join(item.answers[0].split()) != "".join(other.answers[0].split())
        and grade(item, boxed(other.answers[0])).correct
    ]
    assert set(taken) <= SAME_BUT_SPELLED_DIFFERENTLY


@pytest.mark.parametrize("name", ["mmlu", "arc-easy"])
def test_gold_letters_are_right_and_others_wrong(name: str) -> None:
    task = load(name)
    assert wrong(task, lambda item: boxed(item.answers[0])) == []
    assert wrong(task, lambda item: f"The answer is ({item.answers[0]}).") == []
    letters = {item.id: "ABCDE".replace(item.answers[0], "")[0] for item in task.items}
    assert len(wrong(task, lambda item: boxed(letters[item.id]))) == len(task.items)


def test_every_gold_name_is_right_and_another_items_is_wrong() -> None:
    task = load("nq-open")
    assert wrong(task, lambda item: item.answers[0]) == []
    assert all(task.grade(i, f"Answer: {a}.").correct for i in task.items for a in i.answers)
    taken = [
        item.id
        for item, other in zip(task.items, task.items[1:], strict=False)
        if task.grade(item, other.answers[0]).correct
    ]
    assert taken == ["nq-dev-2477"]  # Its neighbour is about the 1980s, too.


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_gold_programs_pass_and_empty_ones_do_not(name: str) -> None:
    task = load(name)
    assert wrong(task, lambda item: item.reference, stride=8) == []
    empty = "```python\ndef {}(*args, **kwargs):\n    return None\n```"
    some = task.items[::16]
    failing = wrong(task, lambda item: empty.format(item.data["entry_point"]), stride=16)
    assert failing == [item.id for item in some]
    others = {item.id: other for item, other in pairwise((*task.items, task.items[0]))}
    assert wrong(task, lambda item: renamed(others[item.id], item), stride=16) == failing


def renamed(other: Item, item: Item) -> str:
    """Another item's gold program under the name that this one is to have."""
    assert other.reference is not None
    return other.reference.replace(other.data["entry_point"], item.data["entry_point"])


def test_a_bare_continuation_of_the_function_passes() -> None:
    assert wrong(load("humaneval"), lambda item: item.answers[0], stride=16) == []
