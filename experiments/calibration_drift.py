"""What a threshold and a pool are worth on another kind of text than they were fitted on.

    python experiments/calibration_drift.py lab [--models FOLDER] [--texts 2000]
    python experiments/calibration_drift.py tasks --task gsm8k --task math500 [--pair smollm2]

`lab` compares problems of `lab-a` with no product, one, and two or more. On each kind, `tau_h` (for
a gate open at `--rate` of positions) and the pool's powers are fitted on one half of the texts, and
then judged on the other half of every kind, by a pass over the reference solutions: nothing is
decoded. Nats are the gain in log-likelihood of the right among plausible tokens, per position, over
the target at the temperature that was best in the fit. Other numbers are points: of accuracy where
a problem has one right text, else of the mean probability of the right token. Differences to the
fit on the same kind of text are paired. ± is half of a 95 % interval over texts.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from studies import lab_pair
from transformers.utils import logging

from easd import Pair, load_models, load_pair
from easd.diagnose.effects import mean, solved
from easd.diagnose.pool_fit import PoolFit, best_power, fit_pool, has_choice, log_shares, pool_laws
from easd.diagnose.positions import Positions, Values, gate, threshold_for
from easd.diagnose.reference_pass import ReferenceText, read_positions
from easd.diagnose.references import references
from easd.pairs import lab
from easd.stats import Estimate, share
from easd.tasks import load_task

LAB = "lab-a"
RULES = ("EASD", "pool at the gate", "pool everywhere, greedy")
SEED = 99  # Of a stream of problems that no model was trained on.
KINDS = {"no product": (0,), "one product": (1,), "two or more": (2, 3, 4)}


@dataclass(frozen=True, slots=True)
class Fitted:
    """What one kind of text calibrates."""

    tau_h: float
    power: float  # of the target alone
    at_gate: PoolFit
    everywhere: PoolFit


def lab_texts(pair: Pair, count: int) -> dict[str, list[ReferenceText]]:
    """As many solutions with each number of products."""
    found: dict[str, list[ReferenceText]] = {name: [] for name in KINDS}
    for problem in lab.stream(LAB, SEED, "train"):
        products = problem.prompt.count("*")
        texts = next(found[name] for name, counts in KINDS.items() if products in counts)
        if len(texts) < count:
            words = problem.prompt, problem.solution
            prompt, ids = (pair.tokenizer(each)["input_ids"] for each in words)
            texts.append((prompt, [*ids, pair.tokenizer.eos_token_id], problem.id))
        elif all(len(each) == count for each in found.values()):
            return found
    raise AssertionError("the stream is endless")


def fit(positions: Positions, rate: float) -> Fitted:
    tau_h = threshold_for(positions, rate)
    everywhere = positions.everywhere
    return Fitted(
        tau_h,
        best_power(positions, everywhere),
        fit_pool(positions, gate(positions, tau_h)),
        fit_pool(positions, everywhere),
    )


@dataclass(frozen=True, slots=True)
class Judged:
    """What a fit is worth on a kind of text.

    Attributes:
        is_open: whether the gate is open, [N].
        nats: log-likelihood of positions with a choice, pool and target alone, [n] each.
        points: of each rule, by text [T] or by position [N].
    """

    is_open: Values
    nats: tuple[Values, Values]
    points: dict[str, Values]


def judge(positions: Positions, fitted: Fitted, unique: bool) -> Judged:
    values, usable = positions.values, has_choice(positions)
    target, is_open = values["target_prob"], gate(positions, fitted.tau_h)
    gated, pool = fitted.at_gate, fitted.everywhere
    at_gate = target.copy()
    at_gate[is_open] = pool_laws(positions, is_open, gated.a, gated.b)[0]
    greedy = values["target_best"].astype(np.float64)
    everywhere = pool_laws(positions, positions.everywhere, pool.a, pool.b)[0]
    # Each rule's law and the target's, sampling or greedy, that it is compared with.
    laws = (
        (np.where(is_open, values["open_easd"], target), target),
        (at_gate, target),
        (everywhere, greedy),
    )
    points = {
        rule: solved(positions, law) - solved(positions, base) if unique else law - base
        for rule, (law, base) in zip(RULES, laws, strict=True)
    }
    nats = (
        log_shares(positions, usable, pool.a, pool.b),
        log_shares(positions, usable, fitted.power, 0.0),
    )
    return Judged(is_open.astype(float), nats, points)


def halves(pair: Pair, texts: Sequence[ReferenceText]) -> tuple[Positions, ...]:
    """Every second text to fit on, and the others to judge on."""
    return tuple(Positions.of(read_positions(pair, texts[begin::2])) for begin in (0, 1))


def shown(found: Estimate, form: str = "+.2f", scale: float = 100) -> str:
    half = scale * (found.high - found.low) / 2
    return f"{scale * found.value:{form}} ± {half:{form.removeprefix('+')}}"


def table(read: dict[str, tuple[Positions, ...]], rate: float, unique: bool) -> list[str]:
    """One line for each kind of text that was fitted on and judged on."""
    fits = {name: fit(first, rate) for name, (first, _) in read.items()}
    heads = ["judged on", "fitted on", "tau_h", "gate open, %", "a, b", "nats", "- own fit's"]
    for rule in RULES:
        heads += [rule, "- own fit's"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, (_, positions) in read.items():
        texts = positions.texts[has_choice(positions)]
        clusters = None if unique else positions.texts
        own = judge(positions, fits[name], unique)
        for other, fitted in fits.items():
            found, pool = judge(positions, fitted, unique), fitted.everywhere
            opens = share(positions.by_text(found.is_open), np.bincount(positions.texts))
            line = [name, other, f"{fitted.tau_h:.2f}", shown(opens, ".2f")]
            line += [f"{pool.a:.2f}, {pool.b:+.2f}"]
            line += [shown(mean(found.nats[0] - found.nats[1], texts), "+.3f", 1)]
            borrowed = shown(mean(found.nats[0] - own.nats[0], texts), "+.3f", 1)
            line += ["" if other == name else borrowed]
            for rule, values in found.points.items():
                borrowed = shown(mean(values - own.points[rule], clusters))
                line += [shown(mean(values, clusters)), "" if other == name else borrowed]
            lines.append(f"| {' | '.join(line)} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("lab", "tasks"))
    parser.add_argument(
        "--models", type=Path, help="folder with target/ and draft/ of lab-a's kind"
    )
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--target", help="hub id or folder, instead of a pair")
    parser.add_argument("--draft", help="the same of its draft")
    parser.add_argument("--task", action="append", help="two or more")
    parser.add_argument("--texts", type=int, default=2000, help="of each kind")
    parser.add_argument("--rate", type=float, default=0.02)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    if options.what == "lab":
        pair, _ = lab_pair(LAB, options.models)
        texts = lab_texts(pair, options.texts)
    else:
        named = options.target and load_models(options.target, options.draft)
        pair = named or load_pair(options.pair)
        tasks = [load_task(name, limit=options.texts) for name in options.task]
        texts = {task.name: references(task, pair) for task in tasks}
    read = {name: halves(pair, each) for name, each in texts.items()}
    print("\n".join(table(read, options.rate, options.what == "lab")))


if __name__ == "__main__":
    main()
