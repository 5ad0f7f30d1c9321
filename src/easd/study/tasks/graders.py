"""Graders that need no helper process: lab problems, multiple choice, short answers."""

from __future__ import annotations

import re
import string
from string import ascii_uppercase

from easd.pairs import lab
from easd.study.tasks.math_reading import last_boxed
from easd.study.tasks.task import Grade, Item

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = set(string.punctuation) | set("\u2018\u2019\u201c\u201d\u00b4\u2013\u2014")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_LETTER_FIRST = re.compile(r"\s*[(\[]?([A-Z])[)\].:]?(?=\s|$|[)\].:,*])")
_ANNOUNCED = re.compile(
    r"(?:answer|option|choice)(?:\s+is)?\s*:?\s*\**\s*[(\[]?([A-Z])\b(?!['\u2019])", re.IGNORECASE
)
_ANSWER_PREFIX = re.compile(r"^\W*(?:(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*:?)\s+", re.I)


def grade_lab(item: Item, text: str) -> Grade:
    """The last token before the end has to be the last running total."""
    problem = lab.Problem(
        id=item.id,
        prompt=item.prompt,
        solution=item.reference or "",
        answer=item.answers[0],
    )
    words = text.replace(lab.EOS, " ").split()
    return Grade(answer=words[-1] if words else None, correct=lab.grade(problem, text))


def grade_choice(item: Item, text: str) -> Grade:
    """Reads the letter of an option: boxed, else announced, else alone."""
    answer = _chosen(text, item.data["choices"])
    return Grade(answer=answer, correct=answer in item.answers)


def grade_exact(item: Item, text: str) -> Grade:
    """Compares the first line with every gold answer after SQuAD's normalisation."""
    boxed = last_boxed(text)
    lines = [line for line in (boxed or text).splitlines() if line.strip()]
    if not lines:
        return Grade(answer=None, correct=False)
    answer = _ANSWER_PREFIX.sub("", lines[0]).strip()
    said = normalise(answer)
    return Grade(answer=answer, correct=any(said == normalise(gold) for gold in item.answers))


def normalise(answer: str) -> str:
    """Lower case, without articles, punctuation and extra spaces (SQuAD, TriviaQA)."""
    kept = "".join(c for c in answer.lower().replace("_", " ") if c not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def _chosen(text: str, choices: tuple[str, ...]) -> str | None:
    """The letter a text settles on; None where it names none of the options."""
    letters = ascii_uppercase[: len(choices)]
    boxed = last_boxed(text)
    if boxed is not None:
        plain = _LATEX_TEXT.sub(r"\1", boxed).strip().strip("$").strip()
        found = _LETTER_FIRST.match(plain)
        if found and found[1] in letters:
            return found[1]
        named = [x for x, option in zip(letters, choices, strict=True) if _same(plain, option)]
        return named[0] if len(named) == 1 else None
    announced = [found[1].upper() for found in _ANNOUNCED.finditer(text)]
    announced = [letter for letter in announced if letter in letters]
    if announced:
        return announced[-1]
    alone = _LETTER_FIRST.match(text)
    return alone[1] if alone and alone[1] in letters and len(text.split()) == 1 else None


def _same(said: str, option: str) -> bool:
    return bool(said) and normalise(said) == normalise(option)
