"""Reading and judging of mathematics, choices and short answers."""

import os
import threading
import time

import pytest

pytest.importorskip("math_verify")

from easd.tasks import Item, mathematics
from easd.tasks.graders import grade_choice, grade_exact, normalise
from easd.tasks.mathematics import grade_mathematics, last_boxed, without_words

HARD = r"\boxed{\sum_{k=1}^{10^{12}} \frac{1}{k^2}}"


def item(*answers: str, choices: tuple[str, ...] = (), tolerance: str | None = None) -> Item:
    data = {"choices": choices, "tolerance": tolerance}
    return Item(id="item", prompt="?", answers=answers, data=data)


RIGHT = [
    ("1000", r"\boxed{1,000}"),
    ("18", r"\boxed{\$18}"),
    ("18", r"\boxed{\$18.00}"),
    ("18", r"\boxed{18\text{ dollars}}"),
    ("18", r"\boxed{18 dollars.}"),
    ("18", r"\boxed{18~\text{eggs}}"),
    ("18", r"\boxed{\$18 per day}"),
    (r"\frac{1}{2}", r"\boxed{\dfrac{1}{2}}"),
    (r"\frac{1}{2}", r"\boxed{\tfrac12}"),
    (r"\frac{1}{2}", r"\boxed{0.5}"),
    (r"\frac{1}{2}", r"\boxed{1/2}"),
    ("50", r"\boxed{50\%}"),
    (r"10\%", r"\boxed{0.1}"),
    ("5", r"so $x = \boxed{3}$, no: $\boxed{5}$."),
    ("1,2", r"$x = \boxed{1}$ or $\boxed{2}$, so $\boxed{1}$ and $\boxed{2}$"),
    ("1,2", r"$\boxed{2}$, $\boxed{1}$"),
    ("1,2,3", r"\boxed{\{3,1,2\}}"),
    ("(1,2)", r"\boxed{\left(1, 2\right)}"),
    ("[1,2)", r"\boxed{[1,2)}"),
    (r"x \in [-2,7]", r"\boxed{[-2,7]}"),
    ("x^2+1", r"\boxed{f(x) = 1 + x^2}"),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"),
    ("73", r"\boxed{\textbf{(073)}}"),
    (r"\text{Evelyn}", r"\boxed{Evelyn}"),
    (r"\text{(C)}", r"\boxed{C}"),
    ("90", r"\boxed{90^{\circ}}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{bmatrix}1\\2\end{bmatrix}}"),
    ("72", "The final answer is 72."),
    ("72", "6 times 12 is\n#### 72"),
    ("5", r"\boxed{\boxed{5}}"),
    ("f(x)=ax+b, where a is any integer", r"\boxed{f(x) = ax+b, where a is any integer}"),
]
WRONG = [
    ("3", r"so $x = \boxed{3}$, no: $\boxed{5}$."),
    ("2", r"$\boxed{1}$ and $\boxed{2}$"),
    ("2", r"\boxed{2 \text{ or } 3}"),
    ("2", r"\boxed{1,2,3,4,5}"),
    ("(1,2)", r"\boxed{(2,1)}"),
    ("(1,2)", r"\boxed{[1,2]}"),
    ("-1", r"\boxed{1}"),
    ("5", r"\boxed{5 million}"),
    ("3", r"\boxed{3 pi}"),
    ("x^2+1", r"\boxed{x^2-1}"),
    (r"\text{Evelyn}", r"\boxed{\text{Briana}}"),
    (r"\text{(C)}", r"\boxed{\text{(B)}}"),
    ("72", "The final answer is 71."),
    ("72", r"\boxed{72"),
    ("72", r"\boxed{}"),
    ("72", "I do not know."),
    ("72", ""),
]


@pytest.mark.parametrize(("gold", "text"), RIGHT)
def test_right_however_written(gold: str, text: str) -> None:
    grade = grade_mathematics(item(gold), text)
    assert grade.correct, grade
    assert grade.failure is None


@pytest.mark.parametrize(("gold", "text"), WRONG)
def test_wrong_however_near(gold: str, text: str) -> None:
    grade = grade_mathematics(item(gold), text)
    assert not grade.correct, grade
    assert grade.failure is None


def test_any_gold_answer_is_right() -> None:
    assert grade_mathematics(item("7", "11"), r"\boxed{11}").correct
    assert not grade_mathematics(item("7", "11"), r"\boxed{13}").correct


def test_a_tolerance_is_kept_to() -> None:
    near = item("1.5", tolerance="1e-1")
    assert grade_mathematics(near, r"\boxed{1.55}").correct
    assert not grade_mathematics(near, r"\boxed{1.65}").correct
    assert not grade_mathematics(item("1.5"), r"\boxed{1.55}").correct


def test_what_was_read_is_told() -> None:
    assert grade_mathematics(item("5"), r"\boxed{ 18\text{ eggs} }").answer == r"18\text{ eggs}"
    assert grade_mathematics(item("5"), "The final answer is 71.").answer == "71"
    assert grade_mathematics(item("5"), "no number here").answer is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {a} then \boxed{\{b\}}", r"\{b\}"),
        (r"\boxed{1}, \boxed{2}, and \boxed{3}", "1, 2, 3"),
        (r"\boxed{1}. Then \boxed{2}", "2"),
        (r"\boxed{4} \boxed{4}", "4"),
        (r"\boxed{5} and \boxed{open", "5"),
        (r"} \boxed{5} {", "5"),
        ("none", None),
    ],
)
def test_last_box(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


def test_reading_takes_time_proportional_to_length() -> None:
    for text in ("\\boxed{" * 50_000, "{" * 300_000, "\\boxed{1}, " * 30_000):
        start = time.process_time()
        last_boxed(text)
        assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("answer", "number"),
    [("18 dollars", "18"), (r"\text{(C)}", "(C)"), ("2 or 3", "2 or 3"), ("x", "x")],
)
def test_words_after_a_number(answer: str, number: str) -> None:
    assert without_words(answer) == number


def test_a_comparison_that_hangs_is_a_failed_item(monkeypatch: pytest.MonkeyPatch) -> None:
    grade_mathematics(item("1"), r"\boxed{x}")
    hung = mathematics._worker._process
    assert hung is not None
    monkeypatch.setattr(mathematics, "TIMEOUT", 1.0)
    start = time.perf_counter()
    grade = grade_mathematics(item("1"), HARD)
    assert time.perf_counter() - start < 10
    assert not grade.correct
    assert grade.failure == "the comparison took more than 1 s"
    assert hung.poll() is not None
    monkeypatch.undo()
    assert grade_mathematics(item("1"), r"\boxed{1.0}").correct


def test_a_comparison_that_dies_is_a_failed_item() -> None:
    grade_mathematics(item("1"), r"\boxed{x}")
    process = mathematics._worker._process
    assert process is not None
    process.kill()
    process.wait()
    assert grade_mathematics(item("1"), r"\boxed{x}").failure == (
        "the comparison ended its process"
    )
    assert grade_mathematics(item("1"), r"\boxed{1.0}").correct


def test_threads_and_forks_get_their_own_answers() -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for i in range(20):
            right = grade_mathematics(item(str(number)), rf"\boxed{{x = {i}}}").correct
            if right != (i == number):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    child = os.fork()
    if child == 0:
        os._exit(0 if grade_mathematics(item("3"), r"\boxed{x = 3}").correct else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert grade_mathematics(item("4"), r"\boxed{4.0}").correct


OPTIONS = ("a mammal", "42", "a bird", "-42")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{(B)}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{\text{(B) 42}}", "B"),
        (r"\boxed{B. 42}", "B"),
        (r"\boxed{42}", "B"),
        (r"\boxed{-42}", "D"),
        (r"\boxed{a bird}", "C"),
        (r"\boxed{A} or rather \boxed{C}", "C"),
        ("The answer is B. Option A is wrong.", "B"),
        ("Answer: **(D)**", "D"),
        ("The best choice is C", "C"),
        ("First, the answer is A. No, the answer is B", "B"),
        ("B", "B"),
        ("B) 42", "B"),
        ("The answer is a mammal", None),
        (r"\boxed{E}", None),
        (r"\boxed{A, B}", None),
        (r"\boxed{43}", None),
        ("A mammal has hair, a bird has not.", None),
        ("A. a mammal\nB. 42\nC. a bird\nD. -42", None),
        ("A) a mammal\nB) 42\n\nC) a bird\nD) -42\n\nB", "B"),
        ("A. a mammal\nB. 42\nC. a bird\nD. -42\n42", "B"),
        ("A. a mammal\nB. 42\nC. a bird\nD. -42\nThe correct answer is B. 42", "B"),
        ("B. 42\nA. Mammals are not asked for.", "B"),
        ("", None),
    ],
)
def test_choices(text: str, letter: str | None) -> None:
    grade = grade_choice(item("B", choices=OPTIONS), text)
    assert grade.answer == letter
    assert grade.correct == (letter == "B")


def test_equal_options_are_not_told_apart_by_their_text() -> None:
    assert grade_choice(item("A", choices=("x y", "x y")), r"\boxed{x y}").answer is None


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Ada Lovelace", True),
        ("ada  lovelace.", True),
        ("The Ada-Lovelace", False),
        ("Answer: Ada Lovelace\nShe was ...", True),
        ("The answer is Ada Lovelace.", True),
        (r"\boxed{Ada Lovelace}", True),
        ("the Countess of Lovelace", True),
        ("Lovelace", False),
        ("Ada Lovelace and Babbage", False),
        ("", False),
        ("\n \n", False),
    ],
)
def test_short_answers(text: str, right: bool) -> None:
    assert grade_exact(item("Ada Lovelace", "Countess of Lovelace"), text).correct == right


def test_answers_of_left_out_words_only() -> None:
    assert normalise("the_who") == "who"
    assert normalise("The The") == "the the"
    assert not grade_exact(item("The The"), "a").correct
    assert grade_exact(item("The The"), "the the").correct
