"""Columns of the hub's data sets, from tables built with the hub's schemas."""

from collections.abc import Callable
from typing import Any

import pytest

datasets = pytest.importorskip("datasets")

from easd.errors import ConfigError, InputError  # noqa: E402
from easd.tasks import TASKS, Task, load_task  # noqa: E402

CODE = "def add(a, b):\n    return a + b\n"
ROWS: dict[str, list[dict[str, Any]]] = {
    "math500": [
        {
            "problem": "Half of one?",
            "solution": "It is $\\boxed{\\frac{1}{2}}$.",
            "answer": "\\frac{1}{2}",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/algebra/1.json",
        }
    ],
    "olympiadbench": [
        {
            "id": 1606,
            "question": "Which two?",
            "solution": ["One way.", "Another."],
            "final_answer": ["$1$,$2$"],
            "context": "Let $x$ be small.",
            "is_multiple_answer": True,
            "unit": None,
            "answer_type": "Numerical",
            "error": None,
            "subfield": "Algebra",
        }
    ],
    "aime24": [
        {
            "id": 60,
            "problem": "How many?",
            "solution": "So $\\boxed{073}$.",
            "answer": "073",
            "url": "u",
            "year": "2024",
        }
    ],
    "aime25": [{"problem": "How many?", "answer": "70", "id": "0"}],
    "amc23": [{"id": 0, "question": "How many?", "answer": "27.0", "url": "u"}],
    "minerva": [{"question": "Speed of light?", "answer": "3e8"}],
    "gsm8k": [{"question": "How many?", "answer": "It is 1000 + 8.\n#### 1,008"}],
    "svamp": [
        {
            "ID": "chal-1",
            "Body": "There are 2 hens. ",
            "Question": "How many legs?",
            "Equation": "( 2.0 * 2.0 )",
            "Answer": "4.0",
            "Type": "Multiplication",
        }
    ],
    "limr": [{"prompt": "How many?", "answer": "5", "source": "olympiads"}],
    "limo": [{"question": "How many?", "solution": "Wait. $\\boxed{5}$", "answer": "5"}],
    "gpqa-diamond": [
        {
            "Record ID": "rec1",
            "Question": "Which particle?\n",
            "Correct Answer": "muon\n",
            "Incorrect Answer 1": "pion",
            "Incorrect Answer 2": "kaon",
            "Incorrect Answer 3": "tauon",
        }
    ],
    "mmlu": [{"question": "Odd?", "subject": "s", "choices": ["2", "4", "5", "6"], "answer": 2}],
    "arc-easy": [
        {
            "id": "Mercury_1",
            "question": "Odd?",
            "choices": {"text": ["2", "3", "4"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        }
    ],
    "nq-open": [{"question": "who", "answer": ["Ada", "Ada Lovelace"]}],
    "triviaqa": [
        {
            "question": "Who?",
            "question_id": "tc_1",
            "question_source": "s",
            "answer": {
                "value": "Ada",
                "aliases": ["Ada", "Countess"],
                "normalized_aliases": ["ada", "countess"],
            },
        }
    ],
    "humaneval": [
        {
            "task_id": "HumanEval/0",
            "prompt": 'def add(a, b):\n    """Sum."""\n',
            "canonical_solution": "    return a + b\n",
            "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
            "entry_point": "add",
        }
    ],
    "mbpp": [
        {
            "source_file": "f",
            "task_id": 2,
            "prompt": "Write add.",
            "code": "def helper():\n    pass\n" + CODE,
            "test_imports": ["import math"],
            "test_list": ["assert add(1, 2) == 3"],
        }
    ],
}
ROWS["arc-challenge"] = ROWS["arc-easy"]
ANSWERS = {
    "math500": ("\\frac{1}{2}",),
    "olympiadbench": ("1,2",),
    "aime24": ("73",),
    "aime25": ("70",),
    "amc23": ("27",),
    "minerva": ("3e8",),
    "gsm8k": ("1008",),
    "svamp": ("4",),
    "limr": ("5",),
    "limo": ("5",),
    "mmlu": ("C",),
    "arc-easy": ("B",),
    "arc-challenge": ("B",),
    "nq-open": ("Ada", "Ada Lovelace"),
    "triviaqa": ("Ada", "Countess"),
}


@pytest.fixture
def from_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Task]:
    """Loads a task whose hub holds the given rows, and checks what the hub was asked for."""
    monkeypatch.delenv("EASD_DATA", raising=False)

    def load(name: str, rows: list[dict[str, Any]] | None = None) -> Task:
        def load_dataset(hub: str, config: str | None, *, split: str) -> Any:
            assert (hub, config, split) == (
                TASKS[name].hub,
                TASKS[name].config,
                TASKS[name].split,
            )
            return datasets.Dataset.from_list(rows or ROWS[name])

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return load_task(name, allow_code_execution=True)

    return load


@pytest.mark.parametrize("name", [name for name, info in TASKS.items() if info.hub])
def test_columns_become_an_item(name: str, from_hub: Callable[..., Task]) -> None:
    task = from_hub(name)
    (item,) = task.items
    if name in ANSWERS:
        assert item.answers == ANSWERS[name]
    assert task.source.startswith(str(TASKS[name].hub))
    assert len(item.prompt) >= 3


def test_rows_without_an_id_are_numbered(from_hub: Callable[..., Task]) -> None:
    task = from_hub("gsm8k", ROWS["gsm8k"] * 3)
    assert [item.id for item in task.items] == ["gsm8k-0", "gsm8k-1", "gsm8k-2"]


def test_context_and_question_are_both_asked(from_hub: Callable[..., Task]) -> None:
    assert from_hub("olympiadbench").items[0].prompt == "Let $x$ be small.\nWhich two?"
    assert from_hub("svamp").items[0].prompt == "There are 2 hens. How many legs?"


def test_gpqa_options_are_shuffled_the_same_way_every_time(
    from_hub: Callable[..., Task],
) -> None:
    rows = [{**ROWS["gpqa-diamond"][0], "Record ID": f"rec{i}"} for i in range(40)]
    once, again = from_hub("gpqa-diamond", rows), from_hub("gpqa-diamond", rows)
    assert once.items == again.items
    assert {item.answers[0] for item in once.items} == set("ABCD")
    for item in once.items:
        choices = item.data["choices"]
        assert choices["ABCD".index(item.answers[0])] == "muon"


def test_code_from_the_hub_is_graded(from_hub: Callable[..., Task]) -> None:
    for name in ("humaneval", "mbpp"):
        task = from_hub(name)
        (item,) = task.items
        assert item.data["entry_point"] == "add"
        assert task.grade(item, f"```python\n{CODE}```").correct
        assert not task.grade(item, f"```python\n{CODE.replace('+', '-')}```").correct


def test_a_changed_column_is_named(from_hub: Callable[..., Task]) -> None:
    with pytest.raises(InputError, match=r"openai/gsm8k test:0: column 'answer' is missing"):
        from_hub("gsm8k", [{"question": "?", "solution": "2"}])


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EASD_DATA", raising=False)

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand a long tail")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConfigError, match=r"\(Couldn't reach the Hub\); give .* --data FILE") as e:
        load_task("gsm8k")
    assert "\n" not in str(e.value)
