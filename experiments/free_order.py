"""Problems with many right texts, and the pair of models that `refused_tokens.py` studies on them.

A problem adds three signed digits to a number, modulo 100. A solution may apply them in any order,
each once, and begins each step with either of two connectives, so that up to 48 texts are right.
Which operation comes next is a free choice that later steps have to respect:

    41 + 7 - 5 + 9 ? so - 5 = 36 then + 7 = 43 so + 9 = 52 # 52
"""

import random
from itertools import count, permutations, product
from pathlib import Path

from training.lab import build_tokenizer, save, train

from easd import Pair, load_models
from easd.diagnose.reference_pass import ReferenceText
from easd.pairs import lab

CONNECTIVES = ("so", "then")
OPERATIONS = 3
OPERANDS = range(2, 10)
USUAL_ORDER = 0.7  # Share of training steps that take the first operation that is left.
STEP = ("connective", "operator", "operand", "equals sign", "result")
KINDS = (*STEP * OPERATIONS, "ending", "ending", "ending")
"""The kind of each token of a solution, the end of the text included."""
VOCABULARY = (*lab.VOCABULARY, *CONNECTIVES)
Operation = tuple[str, int]


def problem(seed: int, index: int, split: str) -> tuple[lab.Problem, list[str]]:
    """A problem with one solution as training texts have it, and all of its right solutions."""
    rng = random.Random(f"free-order/{split}/{seed}/{index}")
    start = rng.randrange(lab.MODULUS)
    given = tuple((rng.choice("+-"), rng.choice(OPERANDS)) for _ in range(OPERATIONS))
    left, order = list(given), []
    while left:
        usual = len(left) == 1 or rng.random() < USUAL_ORDER
        order.append(left.pop(0 if usual else rng.randrange(1, len(left))))
    solution = _written(start, tuple(order), tuple(rng.choices(CONNECTIVES, k=OPERATIONS)))
    orders = sorted(set(permutations(given)))
    right = [
        _written(start, each, words)
        for each in orders
        for words in product(CONNECTIVES, repeat=OPERATIONS)
    ]
    prompt = " ".join([str(start), *(f"{symbol} {operand}" for symbol, operand in given), "?"])
    name, answer = f"{split}/{seed}/{index}", solution.split()[-1]
    return lab.Problem(id=name, prompt=prompt, solution=solution, answer=answer), right


def encoded(pair: Pair, given: lab.Problem, solution: str) -> ReferenceText:
    """Prompt and solution as token ids, and the problem's name."""
    prompt, ids = (pair.tokenizer(text)["input_ids"] for text in (given.prompt, solution))
    return prompt, [*ids, pair.tokenizer.eos_token_id], given.id


def trained(folder: Path, seed: int, steps: int) -> Pair:
    """The pair of a training seed, trained where the folder lacks it; 1,000 steps learn it."""
    tokenizer = build_tokenizer(VOCABULARY)
    recipes = {
        "target": (
            seed,
            lab.ModelRecipe(width=64, layers=2, steps=steps, learning_rate=4e-3),
        ),
        "draft": (
            seed + 1000,
            lab.ModelRecipe(width=64, layers=1, steps=steps * 3 // 4, learning_rate=5e-3),
        ),
    }
    for role, (own, recipe) in recipes.items():
        if not (folder / role / "config.json").exists():
            problems = (problem(own, index, "train")[0] for index in count())
            model, _ = train(role, recipe, own, problems, tokenizer)
            save(model, tokenizer, folder / role)
    return load_models(str(folder / "target"), str(folder / "draft"), device="cpu")


def _written(start: int, order: tuple[Operation, ...], words: tuple[str, ...]) -> str:
    """The solution that applies operations in this order, each after its connective."""
    parts, total = [], start
    for (symbol, operand), word in zip(order, words, strict=True):
        total = lab.OPERATIONS[symbol](total, operand) % lab.MODULUS
        parts += [word, symbol, str(operand), "=", str(total)]
    return " ".join([*parts, "#", str(total)])
