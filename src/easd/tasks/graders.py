"""Graders of lab problems, multiple choice, short answers, and code."""

from __future__ import annotations

import re
import string
from string import ascii_uppercase

from easd.errors import ConfigError
from easd.pairs import lab
from easd.tasks import sandbox
from easd.tasks.mathematics import last_boxed
from easd.tasks.programs import continuation, extract
from easd.tasks.task import Grade, Item, after_reasoning

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = set(string.punctuation) | set("\u2018\u2019\u201c\u201d\u00b4\u2013\u2014")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|mbox|bf)\s*\{([^{}]*)\}")
_NESTED = 3  # Levels, as in \textbf{\text{(C)}}.
_LATEX_SPACE = re.compile(r"\\[ ,;:!]|~")
_MARKUP = re.compile(r"[$`\"\u201c\u201d]|\*+|__|\\[()\[\]]")
_NOUN = r"(?:(?:option|choice|letter)\s*:?\s+)"
_LETTER = re.compile(rf"(?i:(?:answer\s+|{_NOUN})?)[(\[]?([A-Za-z])[)\].:]*")
_LETTER_AND_MORE = re.compile(
    r"(?i:(?:option|choice)\s+)?(?:[(\[]([A-Z])[)\]][.:,]?|([A-Z])(?:[).:]|\s+[-\u2013\u2014]))\s"
)
_SAYS = r"(?:is|was|(?:must|should|would|will|has\s+to)(?:\s+\w+ly|\s+therefore|\s+thus)?\s+be|:|=)"
# A line that announces an answer has one of these.
_CUE = re.compile(
    "answer|option|choice|letter|correct|right|best|must|choose|select|pick|go"
    "|so[ ,]|thus|hence|therefore"
)
_UNFINISHED = (":", "is", "be", "answer", "option")
_ANNOUNCED = re.compile(
    r"(?:(?i:\b(?:answer|(?:correct|right|best)\s+(?:option|choice|one|statement|response))(?:\s+(?:here|then))?"
    rf"\s*{_SAYS}|\b(?:it|this)\s+must(?:\s+\w+ly|\s+therefore)?\s+be|\bmust\s+be"
    r"|\b(?:choose|select|pick|go(?:ing)?\s+with))"
    rf"(?i:\s*:?\s*(?:(?:therefore|thus|clearly|then|simply|definitely|indeed)\s+)?(?:the\s+)?{_NOUN}?)"
    rf"|(?i:\banswer\s+{_NOUN}?)(?=[(\[]?[A-Z][)\]]?[.!]?\s*(?:\n|\Z))"
    rf"|(?i:(?:\bis\s+(?:the\s+)?|\A\s*|\n\s*){_NOUN}))"
    r"\s*(?:[-\u2013]\s+)?[(\[]?([A-Z])\b(?!['\u2019])"
    r"|(?i:(?:\A|[.!?\n])\s*(?:so|thus|hence|therefore),?\s+)[(\[]?([A-Z])(?=[)\]]?[.!]?\s*(?:\n|\Z))"
    r"|\b([A-Z])[)\]]?(?i:\s+is\s+(?:therefore\s+)?(?:the\s+)?(?:correct|right|best)\b)"
)
_THE_ANSWER = (
    r"(?:\w+,\s*|(?:so|thus|hence|therefore|and)\s+)?(?:(?:the|my)\s+)?"
    r"(?:(?:final|short|correct)\s+)?answer(?:\s+to\s[^.\n]{1,100}?)?"
)
_ANSWER_PREFIX = re.compile(rf"^\W*{_THE_ANSWER}(?:\s+is)?\s*[:\u2013-]?\s+", re.I)
_ANSWER_SENTENCE = re.compile(rf"(?:^|[.!?:;\n])\s*{_THE_ANSWER}\s*(?:\bis\b\s*:?|:)\s*", re.I)
_SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z])")


def grade_lab(item: Item, text: str) -> Grade:
    """Compares the last token before the end with the last running total."""
    problem = lab.Problem(
        id=item.id,
        prompt=item.prompt,
        solution=item.reference or "",
        answer=item.answers[0],
    )
    words = text.replace(lab.EOS, " ").split()
    return Grade(answer=words[-1] if words else None, correct=lab.grade(problem, text))


def grade_choice(item: Item, text: str) -> Grade:
    """Reads the letter of an option: boxed, else announced, else on its own.

    A text that merely repeats all options has chosen none.
    """
    answer = _chosen(after_reasoning(text), item.data["choices"])
    return Grade(answer=answer, correct=answer in item.answers)


def grade_exact(item: Item, text: str) -> Grade:
    """Compares a short answer with every gold one after SQuAD's normalisation.

    The answer is boxed, or follows "the answer is", or is the first line. A sentence may follow.
    """
    answer = _short_answer(after_reasoning(text))
    if answer is None:
        return Grade(answer=None, correct=False)
    ends = [found.start() for found in _SENTENCE_END.finditer(answer)]
    readings = [normalise(answer[:end]) for end in [len(answer), *ends]]
    correct = any(normalise(gold) in readings for gold in item.answers)
    return Grade(answer=answer, correct=correct)


def _short_answer(text: str) -> str | None:
    statement = last_boxed(text) or text.replace("**", "")
    announced = (
        [found.end() for found in _ANSWER_SENTENCE.finditer(statement)]
        if "answer" in statement.lower()
        else []
    )
    if announced and statement[announced[-1] :].strip():
        statement = statement[announced[-1] :]
    lines = [line.strip() for line in statement.splitlines() if line.strip()]
    return _ANSWER_PREFIX.sub("", lines[0]).strip() if lines else None


def normalise(answer: str) -> str:
    """Lowers case and drops articles, punctuation and extra spaces (SQuAD, TriviaQA)."""
    kept = "".join(c for c in answer.lower().replace("_", " ") if c not in _PUNCTUATION)
    # An answer of which nothing would be left, such as the band "The The", is kept.
    return " ".join(_ARTICLES.sub(" ", kept).split()) or answer.lower().strip(" .")


def _chosen(text: str, choices: tuple[str, ...]) -> str | None:
    """Returns the letter of the option that a text chooses, if any."""
    letters = ascii_uppercase[: len(choices)]
    boxed = last_boxed(text)
    if boxed is not None:
        statement = boxed if boxed.isalpha() else _unmarked(boxed)
        chosen = _named(statement, boxed, choices)
        # A box with a formula need not be the answer; one with letters is.
        if (
            chosen is not None
            or _LETTER.fullmatch(statement)
            or not _is_formula(statement, letters)
        ):
            return chosen
    plain = _unmarked(text)
    lines = [line for line in plain.splitlines() if line.strip()]
    if announced := _announced(lines, letters):
        return announced
    if boxed is not None:
        return None
    openings = [_LETTER_AND_MORE.match(line) for line in lines]
    if "".join(found[1] or found[2] for found in openings if found) == letters:
        # All options are repeated, and only what follows can be a choice.
        lines = [line for line, found in zip(lines, openings, strict=True) if not found]
        plain = ""
    for statement in (plain, *lines[-1:], *lines[:1]):
        if chosen := _named(statement.strip(), statement, choices):
            return chosen
    return None


def _announced(lines: list[str], letters: str) -> str | None:
    """Returns the letter that is last announced as the answer, perhaps on the next line."""
    after = ""
    for line in reversed(lines):
        lower = line.lower()
        if _CUE.search(lower):
            statement = f"{line}\n{after}" if lower.rstrip().endswith(_UNFINISHED) else line
            for found in reversed(_ANNOUNCED.findall(statement)):
                if (letter := "".join(found)) in letters:
                    return letter
        after = line
    return None


def _unmarked(text: str) -> str:
    """Removes Markdown's and LaTeX's marks around letters and words."""
    bare = text
    if "\\" in text:
        bare = _LATEX_SPACE.sub(" ", text)
        for _ in range(_NESTED):
            bare = _LATEX_TEXT.sub(r"\1", bare)
    return _MARKUP.sub("", bare).strip()


def _is_formula(statement: str, letters: str) -> bool:
    return not re.fullmatch(rf"[{letters}](?:\W+(?:and|or)?\W*[{letters}])*\W*", statement)


def _named(statement: str, raw: str, choices: tuple[str, ...]) -> str | None:
    """Returns the letter that an expression is, begins with, or whose option it repeats."""
    letters = ascii_uppercase[: len(choices)]
    if alone := _LETTER.fullmatch(statement):
        return alone[1].upper() if alone[1].upper() in letters else None
    options = list(zip(letters, choices, strict=True))
    repeats = {_plain(raw), _plain(statement)}
    named = [x for x, option in options if _plain(option) in repeats]
    if named:
        return named[0] if len(named) == 1 else None
    opening = _LETTER_AND_MORE.match(statement)
    letter = (opening[1] or opening[2]) if opening else None
    return letter if letter is not None and letter in letters else None


def _plain(text: str) -> str:
    """Normalises case and spaces for comparison, but keeps signs and operators."""
    return " ".join(text.casefold().split()).strip("$. ")


def check_code_execution(name: str, allowed: bool) -> None:
    """Refuses a task that is graded by running code, where that is not allowed or not safe.

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
    text, name = after_reasoning(text), item.data["entry_point"]
    code = extract(text, name)
    if code is None:
        # The text does not define the function: it continues the given head.
        code = continuation(text)
        parts = [item.data["head"] + code, item.data["tests"]]
    else:
        parts = [item.data["head"], code, item.data["tests"]]
    try:
        outcome = sandbox.run(parts, judged=name)
    except OSError as error:
        reason = f"the sandbox could not be started ({error})"
        return Grade(answer=code, correct=False, failure=reason)
    return Grade(answer=code, correct=outcome.passed, failure=outcome.failure)
