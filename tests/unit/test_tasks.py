"""Loading: names, files, broken rows, limits, hashes, lab problems."""

import json
import re
from pathlib import Path

import pytest

from easd.errors import ConfigError, EasdError, InputError
from easd.evaluate.grid import parse_task
from easd.pairs import lab
from easd.tasks import TASKS, load_task

ROWS = [
    {"id": "one", "problem": "1 + 1?", "answer": "2", "solution": "It is 1 + 1 = 2."},
    {"id": "two", "problem": "1 + 2?", "answer": "3"},
    {"id": "three", "problem": "1 + 3?", "answers": ["4", "four"]},
]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "gsm8k.jsonl", ROWS)


def test_a_file_becomes_items(file: Path) -> None:
    task = load_task("gsm8k", data=file)
    assert [item.id for item in task.items] == ["one", "two", "three"]
    assert [item.answers for item in task.items] == [("2",), ("3",), ("4", "four")]
    assert task.items[0].prompt == "1 + 1?"
    assert "\\boxed{}" in (task.system or "")
    assert (task.chat, task.skipped, task.source) == (True, (), "gsm8k.jsonl")
    assert not task.unique_solution


def test_a_reference_ends_in_the_boxed_answer_and_is_graded_right(file: Path) -> None:
    item = load_task("gsm8k", data=file).items[0]
    assert item.reference == "It is 1 + 1 = 2.\nThe final answer is $\\boxed{2}$."
    assert load_task("gsm8k", data=file).items[1].reference is None


def test_references_of_gsm8k_have_no_calculator_notes(tmp_path: Path) -> None:
    row = {"problem": "?", "answer": "6", "solution": "2*3 = <<2*3=6>>6 eggs.\n#### 6"}
    item = load_task("gsm8k", data=write(tmp_path / "a.jsonl", [row])).items[0]
    assert item.reference == "2*3 = 6 eggs.\nThe final answer is $\\boxed{6}$."


def test_folder_by_argument_or_environment(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_task("gsm8k", data=tmp_path).source == "gsm8k.jsonl"
    monkeypatch.setenv("EASD_DATA", str(tmp_path))
    assert load_task("gsm8k").source == "gsm8k.jsonl"
    with pytest.raises(InputError, match=r"has no svamp\.jsonl"):
        load_task("svamp", data=tmp_path)


def test_other_names_of_local_files(tmp_path: Path) -> None:
    rows = [{"id": "a", "problem": "Who?", "answers": ["Ada"]}]
    write(tmp_path / "nq_open_dev.jsonl", rows)
    assert load_task("nq-open", data=tmp_path).items[0].answers == ("Ada",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"problem": "1?", "answer"', r"gsm8k\.jsonl:4: the line is not JSON"),
        ("[1, 2]", r"gsm8k\.jsonl:4: the line holds list, not an object"),
        ('{"answer": "2"}', r"gsm8k\.jsonl:4: key 'problem' is missing"),
        ('{"problem": "2?"}', r"gsm8k\.jsonl:4: key 'answer' is missing"),
        ('{"problem": 3, "answer": "2"}', r"gsm8k\.jsonl:4: 'problem' is 3; it has to be a string"),
        ('{"problem": "", "answer": []}', r"gsm8k\.jsonl:4: 'answer' is \[\]"),
        ('{"id": "one", "problem": "?", "answer": "2"}', r"4: id 'one' is that of gsm8k\.jsonl:1"),
        ("\ufffd\ufffe", r"gsm8k\.jsonl:4: the line is not JSON"),
    ],
)
def test_a_broken_line_is_named(file: Path, line: str, message: str) -> None:
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(InputError, match=message):
        load_task("gsm8k", data=file)


def test_a_line_that_is_no_text_is_named(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b'{"problem": "\xff\xfe"}\n')
    with pytest.raises(InputError, match=r"gsm8k\.jsonl:4: the line is not JSON"):
        load_task("gsm8k", data=file)


def test_a_row_without_a_gold_answer_is_skipped_and_said(file: Path) -> None:
    file.write_text(file.read_text() + '{"problem": "unsolved?", "answer": " "}\n')
    task = load_task("gsm8k", data=file)
    assert len(task.items) == 3
    assert task.skipped == ("gsm8k.jsonl:4: it has no gold answer",)


def test_an_answer_that_is_no_option_is_skipped_and_said(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "problem": "?", "choices": ["x", "y"], "answer": "B"},
        {"id": "b", "problem": "?", "choices": ["x", "y"], "answer": "C"},
    ]
    task = load_task("mmlu", data=write(tmp_path / "mmlu.jsonl", rows))
    assert [item.id for item in task.items] == ["a"]
    assert task.skipped == ("mmlu.jsonl:2: answer 'C' is none of the 2 options' letters",)


def test_empty_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no rows"):
        load_task("gsm8k", data=write(tmp_path / "none.jsonl", []))
    with pytest.raises(InputError, match="cannot be read"):
        load_task("gsm8k", data=tmp_path / "elsewhere.jsonl")


def test_first_and_limit_take_a_window(file: Path) -> None:
    assert [i.id for i in load_task("gsm8k", data=file, first=1, limit=1).items] == ["two"]
    assert len(load_task("gsm8k", data=file, limit=99).items) == 3
    with pytest.raises(InputError, match="has 3 usable items, first = 3"):
        load_task("gsm8k", data=file, first=3)
    with pytest.raises(ConfigError, match="limit = 0"):
        load_task("gsm8k", data=file, limit=0)


def test_the_hash_tells_what_was_used(file: Path) -> None:
    whole = load_task("gsm8k", data=file)
    assert whole.data_hash == load_task("gsm8k", data=file).data_hash
    assert whole.data_hash != load_task("gsm8k", data=file, limit=2).data_hash
    file.write_text(file.read_text().replace("four", "vier"))
    assert whole.data_hash != load_task("gsm8k", data=file).data_hash


def test_only_the_split_of_the_task_is_used(tmp_path: Path) -> None:
    row = {
        "problem": "Add.",
        "answer": "def add(a, b): return a + b",
        "test_list": ["assert add(1, 2) == 3"],
        "test_imports": [],
        "entry_point": "add",
    }
    rows = [{**row, "id": split, "split": split} for split in ("train", "test", "prompt")]
    file = write(tmp_path / "mbpp.jsonl", rows)
    task = load_task("mbpp", data=file, allow_code_execution=True)
    assert [item.id for item in task.items] == ["test"]
    assert task.source == "mbpp.jsonl, split test (1 of 3 rows)"


def test_own_files(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", [{"problem": "Capital of France?", "answer": "Paris"}])
    task = load_task("file", data=file, grader="exact")
    assert task.grade(task.items[0], "paris.").correct
    assert task.items[0].id == "file-1"
    numbers = write(tmp_path / "numbers.jsonl", [{"problem": "6 times 7?", "answer": 42}])
    task = load_task("file", data=numbers)
    assert task.grade(task.items[0], "It is $\\boxed{42}$.").correct
    with pytest.raises(ConfigError, match="grader = 'human' is not known"):
        load_task("file", data=file, grader="human")
    with pytest.raises(ConfigError, match="give it with --data"):
        load_task("file")


def test_choices_are_lettered_in_the_prompt(tmp_path: Path) -> None:
    rows = [{"problem": "Which is odd?", "choices": ["2", "3", "4"], "answer": "B"}]
    item = load_task("arc-easy", data=write(tmp_path / "arc_easy.jsonl", rows)).items[0]
    assert item.prompt.startswith("Which is odd?\n\nA. 2\nB. 3\nC. 4\n\n")


def test_code_needs_permission(tmp_path: Path) -> None:
    for name in ("humaneval", "mbpp"):
        with pytest.raises(ConfigError, match="--allow-code-execution"):
            load_task(name, data=tmp_path)


def test_code_is_refused_where_it_cannot_be_confined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easd.tasks.sandbox.sys.platform", "darwin")
    with pytest.raises(ConfigError, match="cannot run code safely here"):
        load_task("humaneval", data=tmp_path, allow_code_execution=True)


def test_a_sandbox_that_does_not_work_is_told_before_anything_is_graded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easd.tasks.sandbox.missing", lambda: None)
    monkeypatch.setattr("easd.tasks.sandbox.MEMORY", 1 << 20)
    with pytest.raises(ConfigError, match="cannot run code here: the sandbox fails with"):
        load_task("humaneval", data=tmp_path, allow_code_execution=True)


def test_unknown_names_and_options(file: Path) -> None:
    with pytest.raises(ConfigError, match="'gsm9k' is not known; choose one of math500"):
        load_task("gsm9k")
    with pytest.raises(ConfigError, match="task gsm8k has no option seed"):
        load_task("gsm8k", data=file, seed=3)
    with pytest.raises(ConfigError, match="not colour"):
        load_task("lab-a", colour="red")
    with pytest.raises(ConfigError, match="not data"):
        load_task("lab-a", data=file)
    with pytest.raises(ConfigError, match="split = 'dev'"):
        load_task("lab-a", split="dev")


@pytest.mark.parametrize("name", lab.RECIPES)
def test_lab_tasks_are_the_generated_problems(name: str) -> None:
    task = load_task(name, limit=5, seed=3)
    expected = lab.problems(name, 5, 3)
    assert [item.id for item in task.items] == [problem.id for problem in expected]
    assert [item.prompt for item in task.items] == [problem.prompt for problem in expected]
    assert (task.chat, task.system, task.unique_solution) == (False, None, True)
    for item, problem in zip(task.items, expected, strict=True):
        assert item.reference == problem.solution
        assert task.grade(item, problem.solution + " " + lab.EOS).correct
        assert not task.grade(item, problem.solution + " 1 2").correct
        assert not task.grade(item, "").correct


def test_lab_windows_and_defaults() -> None:
    assert len(load_task("lab-a").items) == 1000
    assert load_task("lab", limit=2).name == "lab-a"
    assert load_task("lab-a", first=3, limit=2).items == load_task("lab-a", limit=5).items[3:]
    calibration = load_task("lab-a", limit=2, split="calibration", seed=7)
    assert calibration.items[0].id == "lab-a/calibration/7/0"


def test_every_task_says_what_it_is() -> None:
    for name, info in TASKS.items():
        assert info.summary, name
        assert (info.hub is None) == (info.kind == "lab" or name == "file"), name
        assert all(re.fullmatch(r"[\w-]+\.jsonl", file) for file in info.files), name


def test_missing_libraries_are_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easd.tasks.mathematics.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'easd\[study\]'"):
        load_task("gsm8k", data=file)


def test_errors_are_of_the_kind_users_can_mend() -> None:
    for error in (ConfigError, InputError):
        assert issubclass(error, EasdError)


def test_a_line_nested_too_deeply_is_named(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"mine.jsonl:1.*nested too deeply"):
        load_task("file", data=path)


@pytest.mark.parametrize(
    ("spec", "first", "limit"),
    [
        ("lab-a", 0, None),
        ("lab-a:30", 0, 30),
        ("lab-a:0-30", 0, 30),
        ("lab-a:500-700", 500, 200),
        ("lab-a:7-8", 7, 1),
    ],
)
def test_a_task_is_named_with_the_items_to_take(spec, first, limit):
    task = parse_task(spec)
    assert (task.name, task.first, task.limit) == ("lab-a", first, limit)
    if limit == 1:
        assert task.load().items == load_task("lab-a", limit=8).items[7:]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("lab-a:7-7", "no item"),
        ("lab-a:9-7", "no item"),
        ("lab-a:7-", "end = ''"),
        ("lab-a:a-b", "first = 'a'"),
        ("lab-a:99999999999999999999", "too large"),
        ("lab-a:0-99999999999999999999", "too large"),
    ],
)
def test_a_slice_without_items_is_one_clear_error(spec, says):
    with pytest.raises(ConfigError, match=says):
        parse_task(spec)
