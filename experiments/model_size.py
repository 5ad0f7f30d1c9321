"""How do the gate and the rules depend on the size of the target, and of the draft?

    python experiments/model_size.py [--seed 1 2] [--widths 32 48 64 96] [--out runs/model-size]

Trains `lab-a`'s target and draft at each width where `--out` lacks them: every target on one stream
of problems, every draft on another and for half as many steps. Then each target reads the
solutions of `--problems` problems beside the draft of width 64, and the target of width 64
reads them beside each draft. A problem has one right solution, so an accuracy is a product over
its tokens, exact for any rule, and nothing is decoded. ± is half of a 95 % interval over problems.
Pools are fitted on other problems than they are judged on, in 5 folds.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from training.lab import build_tokenizer, save, train
from transformers.utils import logging

from easd import Pair, load_models
from easd.diagnose.effects import effects, mean, solved
from easd.diagnose.pool_fit import fit_pool, held_out_laws
from easd.diagnose.positions import Positions, gate, threshold_for
from easd.diagnose.reference_pass import read_positions
from easd.diagnose.references import references
from easd.pairs import lab
from easd.stats import Estimate, share
from easd.tasks import load_task

PAIR = "lab-a"
MIDDLE = 64  # The width that one model keeps while the other's varies.
LEARNING_RATE = 5e-3  # Of width 64 and below; wider models need less.
RATE = 0.02


def trained(out: Path, seed: int, widths: list[int], steps: int) -> None:
    """Trains the models that the folder of a seed lacks."""
    tokenizer = build_tokenizer()
    for width in widths:
        rate = LEARNING_RATE * min(1, MIDDLE / width)
        for role, own, length in (("target", seed, steps), ("draft", seed + 1000, steps // 2)):
            if (out / f"{role}-{width}" / "config.json").exists():
                continue
            recipe = lab.ModelRecipe(width=width, steps=length, learning_rate=rate)
            problems = lab.stream(PAIR, own, "train")
            model, _ = train(f"{role}-{width}", recipe, own, problems, tokenizer)
            save(model, tokenizer, out / f"{role}-{width}")


def columns(pair: Pair, problems: int, tau_h: float | None) -> Iterator[tuple[str, str]]:
    """Names and values of one pair's line; `tau_h` is the threshold of another pair."""
    task = load_task(PAIR, limit=problems, split="calibration")
    positions = Positions.of(read_positions(pair, references(task, pair)))
    values = positions.values
    for model in ("target", "draft"):
        yield f"{model} right, %", shown(mean(solved(positions, values[f"{model}_prob"])), ".1f")
    greedy = solved(positions, values["target_best"].astype(np.float64))
    yield "target greedy, %", shown(mean(greedy), ".1f")
    for model in ("target", "draft"):
        entropy = mean(values[f"{model}_entropy"], positions.texts)
        yield f"{model} entropy", shown(entropy, ".3f", 1)
    at_rate = threshold_for(positions, RATE)
    yield "tau_h for 2 %", f"{at_rate:.2f}"
    if tau_h is not None:
        opens = positions.by_text(gate(positions, tau_h).astype(np.float64))
        yield (
            "open at the middle pair's, %",
            shown(share(opens, np.bincount(positions.texts)), ".2f"),
        )
    found = {
        each.rule: each.change for each in effects(positions, at_rate, 0.8, unique_solution=True)
    }
    for name in ("easd", "random refusal", "pool"):
        yield f"{name} at 2 %, points", shown(found[name])
    best, _ = held_out_laws(positions, positions.everywhere)
    yield "pool everywhere - greedy, points", shown(mean(solved(positions, best) - greedy))
    for name, where in (("gate", gate(positions, at_rate)), ("all", positions.everywhere)):
        pool = fit_pool(positions, where)
        low, high = pool.b_low, pool.b_high
        bounds = "not determined" if low is None else f"b {pool.b:+.2f} ± {(high - low) / 2:.2f}"
        yield f"pool, {name}", f"a {pool.a:.2f}, {bounds}"


def shown(found: Estimate, form: str = "+.2f", scale: float = 100) -> str:
    half = scale * (found.high - found.low) / 2
    return f"{scale * found.value:{form}} ± {half:{form.removeprefix('+')}}"


def pair_of(folder: Path, target: int, draft: int) -> Pair:
    names = (
        str(folder / f"{role}-{width}") for role, width in (("target", target), ("draft", draft))
    )
    return load_models(*names, device="cpu")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 48, 64, 96])
    parser.add_argument("--steps", type=int, default=2600, help="of a target; of a draft, half")
    parser.add_argument("--problems", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path("runs/model-size"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    widths = sorted({*options.widths, MIDDLE})
    for seed in options.seed:
        folder = options.out / f"seed-{seed}"
        trained(folder, seed, widths, options.steps)
        middle = dict(columns(pair_of(folder, MIDDLE, MIDDLE), options.problems, None))
        tau_h = float(middle["tau_h for 2 %"])
        sizes = [(f"target {width}", width, MIDDLE) for width in widths]
        sizes += [(f"draft {width}", MIDDLE, width) for width in widths]
        for number, (name, target, draft) in enumerate(sizes):
            pair = pair_of(folder, target, draft)
            model = pair.target if name.startswith("target") else pair.draft
            line = dict(columns(pair, options.problems, tau_h))
            if number == 0:
                print(f"\nseed {seed}\n\n| varied | parameters | {' | '.join(line)} |")
                print(f"|{'---|' * (len(line) + 2)}")
            count = f"{model.num_parameters():,}"
            print(f"| {name} | {count} | {' | '.join(line.values())} |", flush=True)


if __name__ == "__main__":
    main()
