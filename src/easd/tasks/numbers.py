r"""Reads numbers as people write them: `1,234.`, `\$18`, `1\,234`, `1.87e6`, `1 1/4`, `50\%`.

Values are exact, so that numbers of any size can be compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from easd.tasks.math_worker import PLACES, RELATIVE

_LONGEST = 400  # Characters of a number.
_SPELLED_OUT = 100  # Largest exponent for which all digits are spelled out in running text.
_LARGEST = 5000  # Largest exponent of a number that is computed.

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SIGNS = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u00d7": "*", "\u00b7": "*", "\u22c5": "*", "\u00a0": " "}
)

# Separators of groups of three digits.
_GROUP = r"(?:,\\!|\{,\}|,|\\[,;:! ]|~|[ \u2009\u202f])"
_DIGITS = rf"(?:[1-9]\d{{0,2}}(?:{_GROUP}\d{{3}})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_TIMES = r"\s*(?:\\times|\\cdot|\*|[xX](?=\s*10))\s*"
_POWER = r"\s*(?:\^|\*\*)\s*[({]?\s*(?P<power>[-+]?\d+)\s*[)}]?"
_FRACTION = (
    r"(?:\\[dtc]?frac\s*(?:\{\s*(?P<over>\d+)\s*\}|(?P<over1>\d))"
    r"\s*(?:\{\s*(?P<under>\d+)\s*\}|(?P<under1>\d))|(?P<above>\d+)\s*/\s*(?P<below>\d+))"
)
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?:(?P<whole>\d+)\s*(?:\s|(?=\\)))?{_FRACTION}"
    rf"|(?P<plain>{_DECIMAL})(?:[eE](?P<exponent>[-+]?\d+)|{_TIMES}10{_POWER})?)"
    r"\s*(?P<percent>\\?%)?"
)
_MONEY = re.compile(r"\\?\$|\\(?:text|mathrm)\{\s*\\?\$\s*\}|[€£]")

# Forms that math-verify misreads in running text.
_MIXED_IN_TEXT = re.compile(r"(?<![\d./^_,}])(\d+)\s+(\d+)/(\d+)(?![\d/]|\.\d)(\.?)")
_SCIENTIFIC_IN_TEXT = re.compile(
    rf"(?<![\w.^,])(\d+(?:\.\d+)?)(?:[eE]([-+]?\d+)|{_TIMES}10{_POWER})(?![\w.]*\w)(?P<stop>\.?)"
)

# math-verify would take a full stop for a part of the expression.
_COMMA_FOR = {".": ",", "": ""}


@dataclass(frozen=True, slots=True)
class Number:
    """A number that was read.

    Attributes:
        value: Its value without the percent sign.
        exact: Whether it is an integer or a fraction, not a decimal that may be rounded.
        percent: Whether a percent sign follows.
        scientific: Whether it is written as `1e6`, which could also be a product with Euler's e.
    """

    value: Fraction
    exact: bool
    percent: bool = False
    scientific: bool = False

    @property
    def spelled(self) -> str:
        """The same number in a form that every parser reads alike."""
        above, below = self.value.as_integer_ratio()
        return str(above) if below == 1 else rf"\frac{{{above}}}{{{below}}}"


def read_number(text: str) -> Number | None:
    """Reads an expression that is one number; returns None for any other."""
    if len(text) > _LONGEST:
        return None
    bare = _MONEY.sub("", without_signs(text)).strip().rstrip(".,;: ").strip()
    found = _NUMBER.fullmatch(bare)
    if found is None:
        return None
    sign = -1 if found["sign"] == "-" else 1
    percent = found["percent"] is not None
    if found["plain"] is None:
        return _fraction(found, sign, percent)
    power = int(found["exponent"] or found["power"] or 0)
    if abs(power) > _LARGEST:
        return None
    digits = re.sub(_GROUP, "", found["plain"])
    value = sign * Fraction(digits.rstrip(".") or "0") * Fraction(10) ** power
    return Number(value, value.denominator == 1, percent, found["exponent"] is not None)


def _fraction(found: re.Match[str], sign: int, percent: bool) -> Number | None:
    above = int(found["over"] or found["over1"] or found["above"])
    below = int(found["under"] or found["under1"] or found["below"])
    if not below or (found["whole"] and above >= below):
        return None
    return Number(sign * (int(found["whole"] or 0) + Fraction(above, below)), True, percent)


def same_number(gold: Number, answer: Number) -> bool:
    """Returns whether two numbers are equal, up to the rounding of a decimal.

    A percentage equals its hundredth. It also equals the same number without the sign, unless the
    answer is below one: 0.5 % is not a half.
    """
    if gold.percent == answer.percent:
        return _near(gold, answer.value)
    if _near(gold, answer.value / 100 if answer.percent else answer.value * 100):
        return True
    return (gold.percent or abs(answer.value) >= 1) and _near(gold, answer.value)


def _near(gold: Number, value: Fraction) -> bool:
    if gold.value == value:
        return True
    if gold.exact and value.denominator == 1:
        return False
    if round(gold.value, PLACES) != round(value, PLACES):
        return False
    return abs(gold.value - value) <= Fraction(RELATIVE) * abs(gold.value)


def without_signs(text: str) -> str:
    """Writes superscripts as powers, and signs of multiplication and minus in ASCII."""
    raised = _RAISED.sub(lambda found: f"^({found[0].translate(_SUPERSCRIPTS)})", text)
    return raised.translate(_SIGNS)


def spell_out(text: str) -> str:
    """Writes a text's mixed and scientific numbers as plain arithmetic."""

    def improper(found: re.Match[str]) -> str:
        whole, above, below = map(int, found.groups()[:3])
        if above >= below:
            return found[0]
        return f"{whole * below + above}/{below}{_COMMA_FOR[found[4]]}"

    def product(found: re.Match[str]) -> str:
        number = read_number(found[0])
        if number is None or abs(int(found[2] or found["power"])) > _SPELLED_OUT:
            return found[0]
        above, below = number.value.as_integer_ratio()
        stop = _COMMA_FOR[found["stop"]]
        return f"{above}{stop}" if below == 1 else f"{above}/{below}{stop}"

    return _SCIENTIFIC_IN_TEXT.sub(product, _MIXED_IN_TEXT.sub(improper, without_signs(text)))
