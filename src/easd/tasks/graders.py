"""Graders of lab problems, multiple choice, short answers, and code (in the sandbox)."""

from __future__ import annotations

import re
import string
from string import ascii_uppercase

from easd.errors import ConfigError
from easd.pairs import lab
from easd.tasks import sandbox
from easd.tasks.mathematics import last_boxed
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
    """The last token before the end must be the last running total."""
    problem = lab.Problem(
        id=item.id,
        prompt=item.prompt,
        solution=item.reference or "",
        answer=item.answers[0],
    )
    words = text.replace(lab.EOS, " ").split()
    return Grade(answer=words[-1] if words else None, correct=lab.grade(problem, text))


def grade_choice(item: Item, text: str) -> Grade:
    """Reads the letter of an option: boxed, else announced, else on its own."""
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
    """The letter of the option that a text chooses; None where it chooses none."""
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


_BLOCK = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.S | re.I)


def check_code_execution(name: str, allowed: bool) -> None:
    """Refuses to load a task whose grading may not, or cannot safely, run here.

    Raises:
        ConfigError: Code execution was not allowed, or this system cannot confine it.
    """
    if not allowed:
        raise ConfigError(
            f"task {name} is graded by running code that a model wrote, on this machine; "
            "if that is what you want, say so with --allow-code-execution"
        )
    missing = sandbox.missing()
    if missing:
        raise ConfigError(
            f"task {name} cannot run code safely here: {missing}; "
            "use a Linux machine or container with Landlock (kernel 5.13 or later)"
        )
    trial = sandbox.run(["import decimal, hashlib"])
    if not trial.passed:
        reason = trial.failure or trial.error
        raise ConfigError(f"task {name} cannot run code here: the sandbox fails with {reason}")


def grade_code(item: Item, text: str) -> Grade:
    """Runs the function that the text defines, or completes, against the item's tests."""
    code = extract(text, item.data["entry_point"])
    if code is None:
        # No definition of its own: the text continues the given head.
        parts = [item.data["head"] + text, item.data["tests"]]
    else:
        parts = [item.data["head"], code, item.data["tests"]]
    try:
        outcome = sandbox.run(parts)
    except OSError as error:
        reason = f"the sandbox could not be started ({error})"
        return Grade(answer=code, correct=False, failure=reason)
    return Grade(
        answer=text if code is None else code, correct=outcome.passed, failure=outcome.failure
    )


def extract(text: str, entry_point: str) -> str | None:
    """The program in a text: the last block that defines the function, else what defines it."""
    defines = re.compile(rf"^\s*(?:async\s+)?def\s+{re.escape(entry_point)}\b", re.M)
    blocks = [found[1] for found in _BLOCK.finditer(text)]
    for block in reversed(blocks):
        if defines.search(block):
            return block
    if blocks:
        return blocks[-1]
    return text if defines.search(text) else None
