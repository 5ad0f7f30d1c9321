"""Graders that need no helper process: lab problems, multiple choice, short answers."""

from __future__ import annotations

import re
import string
from string import ascii_uppercase

from easd.pairs import lab
from easd.tasks.math_reading import last_boxed
from easd.tasks.task import Grade, Item

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = set(string.punctuation) | set("\u2018\u2019\u201c\u201d\u00b4\u2013\u2014")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].:]*")
_LETTER_AND_MORE = re.compile(r"(?:[(\[]([A-Z])[)\]]|([A-Z])[).:])\s")
_ANNOUNCED = re.compile(
    r"(?i:\b(?:answer|(?:correct|right|best)\s+(?:option|choice))(?:\s+is)?)"
    r"\s*:?[\s*]*[(\[]?([A-Z])\b(?!['\u2019])"
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
    # An answer that consists of what is left out, such as the band "The The", stays as it is.
    return " ".join(_ARTICLES.sub(" ", kept).split()) or answer.lower().strip(" .")


def _chosen(text: str, choices: tuple[str, ...]) -> str | None:
    """The letter a text settles on; None where it names none of the options."""
    letters = ascii_uppercase[: len(choices)]
    boxed = last_boxed(text)
    said = text.strip()
    if boxed is not None:
        said = _LATEX_TEXT.sub(r"\1", boxed).strip(" $")
    elif announced := [x for x in _ANNOUNCED.findall(text) if x in letters]:
        return announced[-1]
    if alone := _LETTER.fullmatch(said):
        return alone[1].upper() if alone[1].upper() in letters else None
    named = [x for x, option in zip(letters, choices, strict=True) if _same(said, option)]
    if named:
        return named[0] if len(named) == 1 else None
    opening = _LETTER_AND_MORE.match(said)
    letter = (opening[1] or opening[2]) if opening else None
    return letter if letter is not None and letter in letters else None


def _same(said: str, option: str) -> bool:
    """Whether a text repeats an option; signs and operators count."""
    return _plain(said) == _plain(option)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip("$. ")
