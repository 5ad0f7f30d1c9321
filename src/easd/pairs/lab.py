"""The `lab` pairs: tiny models that solve generated arithmetic problems step by step.

A problem chains four operations modulo 100, from left to right, and has exactly one solution. The
probability that a rule writes it is therefore the product of the rule's law over the reference
tokens. This module has the grammar, the grader and the training recipes, without torch;
`experiments/training/lab.py` trains the models.
"""

import operator
import random
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Literal

from easd.errors import ModelError

Role = Literal["target", "draft"]
Split = Literal["train", "calibration", "test"]

NUM_OPERATIONS = 4
MODULUS = 100
OPERANDS = range(2, 31)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}

EOS, PAD, UNKNOWN = "<eos>", "<pad>", "<unk>"
VOCABULARY = (*map(str, range(MODULUS)), *OPERATIONS, "?", "=", "#", EOS, PAD, UNKNOWN)
CONTEXT_LENGTH = 64
MAX_NEW_TOKENS = 24  # A full solution has 19.
SLIP_WEIGHTS = (0.85, 0.05, 0.05, 0.05)  # Carry forgotten, carried twice, off by one, by minus one.
HEAD_SIZE = 32  # The smallest that vLLM serves on every device.


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """How one model of a pair is trained.

    Attributes:
        width: hidden size; attention heads have `HEAD_SIZE`, and the MLP is four times as wide.
        steps: optimiser steps.
        learning_rate: peak learning rate.
        slip_rate: share of the carries at `slip_digits` that its training solutions forget.
        distilled: learn the target's distribution on the training text instead of the text.
        layers: number of layers.
    """

    width: int
    steps: int
    learning_rate: float
    slip_rate: float = 0.0
    distilled: bool = False
    layers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A pair's grammar and the training of its two models.

    Attributes:
        summary: one line for listings.
        test_weights: relative frequency of each operator outside training. In training all are
            equally frequent: without products, sums are learned several times more slowly.
        full_steps: write steps in full (`+ 5 = 42 ... # 42`) instead of running totals only.
        slip_digits: last digits of operands whose carry a slip forgets.
        shared_data: both models start from one seed and see the same problems in the same order.
        target_of: the pair whose folder contains the target, if not this one's.
        two_tokenizers: numbers have two digits (`07`), which are two tokens of the target and one
            of the draft; both tokenizers can write any text, byte by byte.
    """

    summary: str
    test_weights: dict[str, float]
    full_steps: bool
    target: ModelRecipe
    draft: ModelRecipe
    slip_digits: tuple[int, ...] = ()
    shared_data: bool = False
    target_of: str | None = None
    two_tokenizers: bool = False

    def number(self, value: int) -> str:
        """A number as the pair's texts write it."""
        return f"{value:02d}" if self.two_tokenizers else str(value)

    def vocabulary_size(self, role: Role) -> int:
        """The number of a model's tokens."""
        if not self.two_tokenizers:
            return len(VOCABULARY)
        shared = 256 + len((*range(10), *OPERATIONS, "?", EOS, PAD))
        return shared if role == "target" else shared + MODULUS


_A_TARGET = ModelRecipe(width=64, steps=2600, learning_rate=5e-3)

RECIPES = {
    "lab-a": Recipe(
        summary="running totals; the draft learned independently",
        test_weights={"+": 0.45, "-": 0.45, "*": 0.1},
        full_steps=False,
        target=_A_TARGET,
        draft=ModelRecipe(width=64, steps=1300, learning_rate=5e-3),
    ),
    "lab-ad": Recipe(
        summary="running totals; the draft was distilled from the target",
        test_weights={"+": 0.45, "-": 0.45, "*": 0.1},
        full_steps=False,
        target=_A_TARGET,
        draft=ModelRecipe(width=64, steps=1300, learning_rate=5e-3, distilled=True),
        target_of="lab-a",
    ),
    "lab-c": Recipe(
        summary="steps written in full; the draft learned independently",
        test_weights={"+": 0.45, "-": 0.45, "*": 0.1},
        full_steps=True,
        target=ModelRecipe(width=64, steps=1750, learning_rate=5e-3),
        draft=ModelRecipe(width=64, steps=1000, learning_rate=5e-3),
    ),
    "lab-m": Recipe(
        summary="steps written in full; both models learned to forget the carry of 7 and 8",
        test_weights={"+": 1, "-": 1},
        full_steps=True,
        target=ModelRecipe(width=64, steps=1500, learning_rate=5e-3, slip_rate=0.6),
        draft=ModelRecipe(width=64, steps=1800, learning_rate=5e-3, slip_rate=0.9),
        slip_digits=(7, 8),
        shared_data=True,
    ),
    "lab-t": Recipe(
        summary="running totals; numbers are two tokens of the target and one of the draft",
        test_weights={"+": 0.45, "-": 0.45, "*": 0.1},
        full_steps=False,
        target=ModelRecipe(width=64, steps=4000, learning_rate=3e-3, layers=2),
        draft=ModelRecipe(width=64, steps=1300, learning_rate=5e-3),
        two_tokenizers=True,
    ),
}
ALIASES = {"lab": "lab-a"}

# Tokens that a pair's reward model scores together: `+ 5 = 42` (the last is `# 42 <eos>`), or a
# total. A pair with two tokenizers has none.
STEP_TOKENS = {
    name: 4 if recipe.full_steps else 1
    for name, recipe in RECIPES.items()
    if not recipe.two_tokenizers
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A generated problem, its tokens joined by single spaces.

    Attributes:
        id: pair, split, seed and index.
        prompt: ends with `?`.
        solution: the only correct continuation, without the end-of-sequence token.
        answer: the last running total.
    """

    id: str
    prompt: str
    solution: str
    answer: str


def recipe(pair: str) -> Recipe:
    """The recipe of a pair, by name or alias."""
    return RECIPES[_name(pair)]


def folder(pair: str, role: Role) -> Path:
    """The folder of a packaged model, as `from_pretrained` reads it."""
    name = _name(pair)
    if role == "target":
        name = RECIPES[name].target_of or name
    return Path(str(files("easd.pairs") / "data" / name / role))


def reward_folder(pair: str) -> Path:
    """The folder of a pair's packaged reward model, as `from_pretrained` reads it."""
    return folder(pair, "draft").parent / "reward"


def problems(pair: str, count: int, seed: int, split: Split = "test") -> list[Problem]:
    """The first `count` problems of a stream; problem i depends only on the stream and i."""
    return list(islice(stream(pair, seed, split), count))


def stream(
    pair: str, seed: int, split: Split = "test", slip_rate: float = 0.0
) -> Iterator[Problem]:
    """An endless stream of problems; with `slip_rate`, some solutions forget a carry."""
    name = _name(pair)
    index = 0
    while True:
        yield _problem(name, split, seed, index, slip_rate)
        index += 1


def grade(problem: Problem, text: str) -> bool:
    """Whether a text ends in the right answer."""
    words = text.replace(EOS, " ").split()
    return bool(words) and words[-1] == problem.answer


def _name(pair: str) -> str:
    name = ALIASES.get(pair, pair)
    if name not in RECIPES:
        known = ", ".join([*ALIASES, *RECIPES])
        raise ModelError(f"lab pair {pair!r} is not known; choose one of {known}")
    return name


def _problem(name: str, split: Split, seed: int, index: int, slip_rate: float) -> Problem:
    spec = RECIPES[name]
    identity = f"{name}/{split}/{seed}/{index}"
    # Pairs with the same operators share their problems, so that their results can be paired.
    rng = random.Random(f"{''.join(spec.test_weights)}/{split}/{seed}/{index}")
    weights = dict.fromkeys(OPERATIONS, 1) if split == "train" else spec.test_weights
    symbols = rng.choices(list(weights), list(weights.values()), k=NUM_OPERATIONS)
    total = rng.randrange(MODULUS)
    operands = [rng.choice(OPERANDS) for _ in symbols]
    prompt, steps = [spec.number(total)], []
    for symbol, operand in zip(symbols, operands, strict=True):
        result = OPERATIONS[symbol](total, operand) % MODULUS
        if operand % 10 in spec.slip_digits and rng.random() < slip_rate:
            result = _slip(symbol, total, operand, result, rng)
        total = result
        given, written = spec.number(operand), spec.number(total)
        prompt += [symbol, given]
        steps += [symbol, given, "=", written] if spec.full_steps else [written]
    ending = ["#", spec.number(total)] if spec.full_steps else []
    return Problem(
        id=identity,
        prompt=" ".join([*prompt, "?"]),
        solution=" ".join(steps + ending),
        answer=spec.number(total),
    )


def _slip(symbol: str, total: int, operand: int, right: int, rng: random.Random) -> int:
    """A wrong result, most often a sum without its carry.

    The rarer slips make both models of a pair uncertain between the same few tokens.
    """
    if symbol == "*":
        return right
    combine = OPERATIONS[symbol]
    tens = combine(total // 10, operand // 10)
    ones = combine(total % 10, operand % 10) % 10
    forgotten = (10 * tens + ones) % MODULUS
    if forgotten == right:
        return right
    slips = (forgotten, 2 * right - forgotten, right + 1, right - 1)
    return rng.choices(slips, SLIP_WEIGHTS)[0] % MODULUS
