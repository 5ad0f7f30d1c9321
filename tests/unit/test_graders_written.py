# ruff: noqa: RUF001
"""Answers as models write them: numbers, letters, phrases, and what surrounds them."""

import time

import pytest

pytest.importorskip("math_verify")

from easd.tasks import Item
from easd.tasks.graders import grade_choice, grade_exact
from easd.tasks.mathematics import grade_mathematics
from easd.tasks.numbers import read_number, spell_out
from easd.tasks.task import after_reasoning

OPTIONS = ("a mammal", "42", "a bird", "-42")


def item(*answers: str, choices: tuple[str, ...] = OPTIONS) -> Item:
    return Item(id="item", prompt="?", answers=answers, data={"choices": choices})


RIGHT = [
    ("1.87e6", r"\boxed{1.87\times10^6}"),
    ("1.87e6", r"\boxed{1870000}"),
    ("1.87e6", r"\boxed{1,870,000}"),
    ("4.5e+33", r"\boxed{4.5\times 10^{33}}"),
    ("4.5E33", r"\boxed{4.5 \cdot 10^{33}}"),
    ("1870000", r"\boxed{1.87e6}"),
    ("1.87e6", "The answer is 1.87e6."),
    ("1.87e6", "The answer is 1870000."),
    ("1.87e6", r"The final answer is $1.87 \times 10^6$."),
    ("1.87e6", r"\boxed{1.87\times10^6 \text{ m/s}}"),
    ("1.87e6", r"\boxed{\frac{187}{100}\times10^6}"),
    ("6.6e-34", r"\boxed{6.6×10⁻³⁴}"),
    ("6.6e-34", "The answer is 6.6×10⁻³⁴."),
    ("6.6e-34", "The answer is 6.6 x 10^-34"),
    ("-1+2e", r"\boxed{2e-1}"),
    ("2e-1", r"\boxed{2e-1}"),
    ("2e-1", r"\boxed{-1+2e}"),
    ("1234", r"\boxed{1,234.}"),
    ("1234", r"\boxed{\$1,234.}"),
    ("1234", r"\boxed{1234,}"),
    ("1234", r"\boxed{1\,234}"),
    ("1234", r"\boxed{1{,}234}"),
    ("1234", r"\boxed{1,\!234}"),
    ("1234", "The answer is $1,234."),
    ("1234", r"\boxed{\text{\$1,234}}"),
    ("1234567", r"\boxed{1\,234\,567}"),
    ("1234.5", r"\boxed{\$1,234.50}"),
    ("5/4", r"\boxed{1 1/4}"),
    ("5/4", r"\boxed{1\frac{1}{4}}"),
    (r"\frac{5}{4}", r"\boxed{1\tfrac14}"),
    ("5/4", "The answer is 1 1/4."),
    ("8/3", "The answer is 2 2/3"),
    ("-5/4", r"\boxed{-1\frac{1}{4}}"),
    ("1.25", r"\boxed{1 1/4}"),
    (r"\frac{1}{3}", r"\boxed{0.333333}"),
    (r"\frac13", "The answer is 0.333333"),
    (r"12.5\%", r"\boxed{12.5}"),
    ("12.5", r"\boxed{12.5\%}"),
    ("0.125", r"\boxed{12.5\%}"),
    (r"\frac{1}{m} t", r"\boxed{\frac{t}{m}}"),
    ("18", r"\boxed{18 m}"),
    ("18", r"\boxed{18m}"),
    ("3t", r"\boxed{3t}"),
    ("3t", r"\boxed{t\cdot 3}"),
    ("2ab", r"\boxed{2ba}"),
    (r"12\pi", r"\boxed{12\pi \text{ cm}^2}"),
    (r"12\pi", r"\boxed{12\pi cm}"),
    (r"1,2,\ldots,n", r"\boxed{1, 2, \ldots, n}"),
    (r"1,2,\ldots,n", r"\boxed{1,2,3,\dots,n}"),
    (r"1,2,\ldots,n", r"\boxed{\{1,2,\ldots,n\}}"),
    ("1000000", r"\boxed{10^6}"),
    ("10^{6}", r"\boxed{1000000}"),
    ("0.0000001", r"\boxed{1e-7}"),
    ("1, 2", r"\boxed{1,2.}"),
]
WRONG = [
    ("2e-7", r"\boxed{1e-7}"),
    ("2e-7", "The answer is 1e-7"),
    ("6.6e-34", r"\boxed{1.6×10⁻¹⁹}"),
    (r"6.6\times10^{-34}", r"\boxed{1.6\times10^{-19}}"),
    ("6.6×10⁻³⁴", "the answer is 1.6×10⁻¹⁹"),
    ("1.87", "The answer is 1.87e6."),
    ("1.87", r"\boxed{1.87e6}"),
    ("0", r"\boxed{1e-9}"),
    (r"\{1e-7,2e-7\}", r"\boxed{\{3e-7,4e-7\}}"),
    (r"(1\times10^{-7},1)", r"\boxed{(2\times10^{-7},1)}"),
    (r"\frac{\sqrt{2}}{10^{20}}", r"\boxed{\frac{\sqrt{3}}{10^{20}}}"),
    (r"\sqrt{2}\times 10^{-20}", r"\boxed{3\times 10^{-25}}"),
    ("2", "The answer is 2 2/3."),
    ("2", "so 2 2/3"),
    ("3", "The answer is 2 2/3."),
    ("11/4", r"\boxed{1 1/4}"),
    ("12", r"\boxed{1 2}"),
    ("1234", r"\boxed{1,235.}"),
    ("1234", r"\boxed{12,34}"),
    ("1234", r"\boxed{1.234}"),
    (r"\frac{1}{m} t", r"\boxed{\frac{1}{m}}"),
    (r"\frac{1}{m}", r"\boxed{\frac{1}{m} t}"),
    ("3t", r"\boxed{3}"),
    ("3", r"\boxed{3t}"),
    ("2ab", r"\boxed{2}"),
    ("2", r"\boxed{2ab}"),
    ("x", r"\boxed{x t}"),
    ("3c", r"\boxed{3}"),
    ("3x", r"\boxed{3}"),
    (r"1,2,\ldots,n", r"\boxed{1,3,5,\ldots,2n-1}"),
    (r"1,3,5,\ldots,2n-1", r"\boxed{1,2,\ldots,n}"),
    (r"1,2,\ldots,n", r"\boxed{1,2,n}"),
    (r"1,2,\ldots,n", r"\boxed{1,2,\dots,2n}"),
    ("1,2,n", r"\boxed{1,2,\ldots,n}"),
    (r"1,2,\ldots,10", r"\boxed{1,2,10}"),
    (r"1+2+\cdots+n", r"\boxed{1+3+\cdots+n}"),
    ("0.5", r"\boxed{0.5\%}"),
    (r"10\%", r"\boxed{0.1\%}"),
    ("123456.7", r"\boxed{123456.8}"),
    ("1000000", r"\boxed{1000001}"),
    ("1.5", r"\boxed{1.50001}"),
]


@pytest.mark.parametrize(("gold", "text"), RIGHT)
def test_right_as_written(gold: str, text: str) -> None:
    grade = grade_mathematics(item(gold), text)
    assert grade.correct, grade
    assert grade.failure is None


@pytest.mark.parametrize(("gold", "text"), WRONG)
def test_wrong_as_written(gold: str, text: str) -> None:
    grade = grade_mathematics(item(gold), text)
    assert not grade.correct, grade
    assert grade.failure is None


CHOSEN = [
    (r"$\boxed{\frac{1}{2}}$ so **Answer: D**", "D"),
    (r"\boxed{x^2} is it. The answer is (D).", "D"),
    ("C - a bird", "C"),
    ("C – a bird", "C"),
    (r"\boxed{C - a bird}", "C"),
    (r"\boxed{\textbf{(C)}\ a bird}", "C"),
    (r"\textbf{(C)}\ a bird", "C"),
    ("Option C", "C"),
    ("option (C).", "C"),
    ("**Option C**", "C"),
    ("Option C: a bird", "C"),
    ("$B$", "B"),
    ("`B`", "B"),
    ("**B**", "B"),
    ("(B)", "B"),
    ("The best choice is option B", "B"),
    ("The correct answer is option B.", "B"),
    ("So it is option B", "B"),
    ("the answer A is tempting, but on reflection it must be B", "B"),
    ("The answer A is tempting, but the answer must be B.", "B"),
    ("The answer is A at first sight. It must be B.", "B"),
    ("The answer cannot be A; it must be B", "B"),
    ("I choose B.", "B"),
    ("B is the correct answer. A is wrong", "B"),
    ("B is not the correct answer.", None),
    ("The answer is not B.", None),
    ("The answer is: **B**", "B"),
    (r"Answer: $\boxed{B}$", "B"),
    ("Reasoning here.\n\nB", "B"),
    ("Reasoning.\n\n**(B)**", "B"),
    ("B\n\nBecause A mammal has hair", "B"),
    ("Answer:\nB", "B"),
    ("Answer B", "B"),
    ("Final answer: B) 42", "B"),
    (r"The answer is \(B\).", "B"),
    (r"The answer is $\text{B}$", "B"),
    ("The correct choice is therefore B", "B"),
    ("The right option would be B", "B"),
    (r"the answer is \textbf{(B)}", "B"),
    (r"\boxed{E} The answer is B", None),
    (r"\boxed{A, B}. The answer is A", None),
    (r"\boxed{A \text{ and } B}", None),
    ("A mammal has hair, a bird has not.", None),
    ("The answer is a mammal", None),
    ("A bird's answer is loud.", None),
    ("I go with B", "B"),
    ("The answer is Apple", None),
    ("Both A and B are right", None),
    ("A - mammals are nice", "A"),
    (
        "Let's look at option A. It's wrong. Option B holds? No, the answer is B.",
        "B",
    ),
    ("<think>The answer is A</think>\n\nB", "B"),
    (r"<think>so \boxed{A}", None),
    ("reason: the answer is A</think>B", "B"),
    ("Which is best? Answer: B", "B"),
    ("I would pick (B).", "B"),
    ("Therefore, B.", "B"),
    ("Therefore, the answer is B because A's are rare", "B"),
    ("The answer should be B, not A.", "B"),
    ("Correct answer: B", "B"),
    ("ANSWER: B", "B"),
    ("The answer is\n\nB", "B"),
    ('The answer is "B".', "B"),
    ("The answer is: \n- B", "B"),
    ("The correct statement is B.", "B"),
    ("A. a mammal\nB. 42\nThe answer is B", "B"),
    (r"\boxed{\text{Option B}}", "B"),
    (r"\boxed{\mathbf{B}}", "B"),
    (r"\boxed{B}: 42. Option A fails", "B"),
    (r"\boxed{42} but the answer is A", "B"),
    (r"\boxed{43}", None),
]


@pytest.mark.parametrize(("text", "letter"), CHOSEN)
def test_letters(text: str, letter: str | None) -> None:
    assert grade_choice(item("B"), text).answer == letter


def test_a_part_of_an_option_is_not_the_option() -> None:
    formulas = ("m", r"\frac{1}{m} t", "t", r"\frac{t}{2}")
    assert not grade_choice(item("B", choices=formulas), r"\boxed{\frac{1}{m}}").correct
    assert grade_choice(item("B", choices=formulas), r"\boxed{\frac{1}{m} t}").correct


PHRASES = [
    ("So the answer is Scorpio.", "Scorpio", True),
    ("The answer is:\n\nParis", "Paris", True),
    ("**Answer:** Paris", "Paris", True),
    ("The answer is **Paris**.", "Paris", True),
    ("Paris. It is the capital.", "Paris", True),
    ("The answer is St. Louis. It lies in Missouri.", "St. Louis", True),
    ("Reasoning.\nThe final answer is Paris.", "Paris", True),
    ("Final Answer: Paris", "Paris", True),
    ("Answer - Paris", "Paris", True),
    ("Thus, the answer is: Paris", "Paris", True),
    ("Paris\nI think that the answer is based on geography", "Paris", True),
    ("The answer is London. No, the answer is Paris.", "London", False),
    ("The answer is Paris", "is Paris", False),
    ("Paris or London", "Paris", False),
    ("Not Paris", "Paris", False),
    ("<think>London</think>Paris", "Paris", True),
    ("<think>Paris</think>London", "Paris", False),
    ("<think>Paris", "Paris", False),
    ("answers", "s", False),
    ("Answer:", "x", False),
    ('"Paris"', "Paris", True),
    ("The Answer", "answer", True),
    ("J. K. Rowling", "J. K. Rowling", True),
    ("It's Paris.", "Paris", False),
    ("The answer to the question is Paris.", "Paris", True),
    ("The correct answer is Paris, France.", "Paris", False),
    ("Q: x? A: Paris", "Paris", False),
    ("the answer is: `Paris`", "Paris", True),
]


@pytest.mark.parametrize(("text", "gold", "right"), PHRASES)
def test_phrases(text: str, gold: str, right: bool) -> None:
    assert grade_exact(item(gold), text).correct == right


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("b<think>a", "b"),
        ("<think>a", ""),
        ("<think>a</think>b<think>c", "b"),
        ("<Thinking>a</Thinking>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("a < think > b", "a < think > b"),
    ],
)
def test_what_follows_the_reasoning(text: str, left: str) -> None:
    assert after_reasoning(text) == left


def test_a_box_within_the_reasoning_is_no_answer() -> None:
    assert not grade_mathematics(item("5"), r"<think>\boxed{5}</think> So it is 6.").correct
    assert not grade_mathematics(item("5"), r"<think>so \boxed{5}").correct
    assert grade_mathematics(item("5"), r"<think>\boxed{6}</think> \boxed{5}").correct


@pytest.mark.parametrize(
    "text", ["answer is " * 20_000, "\\text{" * 50_000, "the answer to " * 10_000, "1" * 90_000]
)
def test_hostile_texts_take_no_time(text: str) -> None:
    start = time.process_time()
    grade_choice(item("B"), text)
    grade_exact(item("B"), text)
    spell_out(text)
    read_number(text)
    assert time.process_time() - start < 3
