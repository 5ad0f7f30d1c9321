"""Where several texts are right: do refusals harm by the replacement, or by what comes after it?

    python experiments/refused_tokens.py [--seed 1 2] [--steps 1000] [--problems 500] [--out FOLDER]

Trains the pairs of `free_order.py` where `--out` lacks them. Both models read all right texts of
each problem, so that the probability of a right text is an exact sum for any rule. Its change
from target to rule is a sum over right beginnings s of a text and right tokens y after them:

    rule(s) * (rule(y | s) - target(y | s)) * V(s y)

where V is the probability that the target goes on to a right text. At each position it has two
parts: that the token itself is right more or less often (with the mean V of right tokens), and
that right tokens are preferred after which the target errs later. Also decodes problems under
shared noise and looks at the first wrong token of texts that the target alone writes right. ± is
half of a 95 % interval over problems; everything is in points.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from free_order import KINDS, encoded, problem, trained
from transformers.utils import logging

from easd import EASD, Pair, Settings, generate
from easd.core.rules import RandomRefusal, Rule, TargetOnly
from easd.diagnose.effects import mean
from easd.diagnose.positions import Positions, gate, threshold_for
from easd.diagnose.reference_pass import read_positions
from easd.stats import Estimate, proportion

FIT_PROBLEMS = 1000


def changes(
    tokens: np.ndarray, owners: np.ndarray, target: np.ndarray, law: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The change of the probability of a right text, by problem and position.

    Args:
        tokens: of all right texts, [T, L].
        owners: each text's problem, [T].
        target, law: probability of each token under the target and the rule, [T, L].

    Returns:
        The part of tokens being right themselves, and the part of what follows them, [N, L] each.
    """
    count, length = owners.max() + 1, tokens.shape[1]
    itself, later = np.zeros((count, length)), np.zeros((count, length))
    ones = np.ones((len(tokens), 1))
    before = np.cumprod(np.hstack([ones, law[:, :-1]]), 1)
    after = np.cumprod(np.hstack([ones, target[:, :0:-1]]), 1)[:, ::-1]
    node = owners
    for at in range(length):
        # Texts that agree up to here are one node of the tree; `first` is one text of each node.
        parent, (_, some) = node, np.unique(node, return_index=True)
        _, first, node = np.unique(
            parent * (tokens.max() + 1) + tokens[:, at], return_index=True, return_inverse=True
        )
        value = np.bincount(node, weights=after[:, at])
        p, moved = target[first, at], (law - target)[first, at]
        right, worth, shift, total = (
            np.bincount(parent[first], weights=each)
            for each in (p, p * value, moved, moved * value)
        )
        reached, direct = before[some, at], shift * worth / right
        itself[:, at] = np.bincount(owners[some], weights=reached * direct)
        later[:, at] = np.bincount(owners[some], weights=reached * (total - direct))
    return itself, later


def common(one: list[int], other: list[int]) -> int:
    """The length of the beginning that two texts share."""
    differs = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))


def decoded(pair: Pair, rule: Rule, prompts: list[list[int]], seed: int) -> list[list[int]]:
    """Texts under shared noise: those of two rules differ first where the rules' laws do."""
    settings = Settings(
        rule=rule, coupling="shared", seed=seed, batch_size=500, max_new_tokens=len(KINDS)
    )
    found = generate(pair.target, pair.draft, prompts, tokenizer=pair.tokenizer, settings=settings)
    return [text.token_ids for text in found]


def flips(
    pair: Pair,
    rules: dict[str, Rule],
    heights: dict[str, tuple[float, float]],
    seed: int,
    count: int,
) -> list[dict]:
    """Newly wrong and newly right texts of each rule, and where the wrong ones go wrong.

    The gate's state is that at the rule's own thresholds, or EASD's.
    """
    problems = [problem(seed, index, "decoded") for index in range(count)]
    rights = [[encoded(pair, given, text)[1] for text in texts] for given, texts in problems]
    prompts = [encoded(pair, given, given.solution)[0] for given, _ in problems]
    base = decoded(pair, TargetOnly(), prompts, seed)
    solved = [text in right for text, right in zip(base, rights, strict=True)]
    rows = []
    for name, rule in rules.items():
        texts = decoded(pair, rule, prompts, seed)
        now = [text in right for text, right in zip(texts, rights, strict=True)]
        lost = [i for i in range(count) if solved[i] and not now[i]]
        row = {
            "rule": name,
            "changed": sum(a != b for a, b in zip(texts, base, strict=True)),
            "newly right": sum(b and not a for a, b in zip(solved, now, strict=True)),
            "newly wrong": len(lost),
        }
        rows.append(row)
        if len(lost) < 2:
            continue
        wrong = np.array([max(common(texts[i], each) for each in rights[i]) for i in lost])
        itself = wrong == [common(texts[i], base[i]) for i in lost]
        read = Positions.of(read_positions(pair, [(prompts[i], texts[i], str(i)) for i in lost]))
        lengths = np.array([len(texts[i]) for i in lost])
        at = np.cumsum(lengths) - lengths + wrong
        is_open = gate(read, *heights.get(name, heights["easd"]))[at]
        entropy = read.values["target_entropy"][at]
        groups = {
            "replacement": itself,
            "later, gate open": ~itself & is_open,
            "later, gate closed": ~itself & ~is_open,
        }
        row["first wrong token"] = {
            group: {
                "share": shown(proportion(chosen)),
                "kinds": counted(wrong[chosen]),
                "entropy, quartiles": quartiles(entropy[chosen]),
            }
            for group, chosen in groups.items()
        }
    return rows


def counted(places: np.ndarray) -> dict[str, int]:
    """How many places there are of each kind of token."""
    kinds = [KINDS[place] for place in places]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(KINDS) if kind in kinds}


def quartiles(values: np.ndarray) -> list[float]:
    """Three numbers, or none of nothing."""
    return np.quantile(values, (0.25, 0.5, 0.75)).round(2).tolist() if len(values) else []


def shown(found: Estimate) -> str:
    """In percent or points."""
    return f"{100 * found.value:.2f} ± {50 * (found.high - found.low):.2f}"


def study(pair: Pair, seed: int, options: argparse.Namespace) -> dict:
    """Everything that is measured of a pair."""
    fit = [problem(seed, index, "calibration")[0] for index in range(FIT_PROBLEMS)]
    fitted = Positions.of(read_positions(pair, [encoded(pair, p, p.solution) for p in fit]))
    problems = [problem(seed, index, "test") for index in range(options.problems)]
    owners = np.repeat(range(options.problems), [len(texts) for _, texts in problems])
    right = [encoded(pair, given, text) for given, texts in problems for text in texts]
    read = Positions.of(read_positions(pair, right))
    shape = len(right), len(KINDS)
    tokens, target, opened = (
        read.values[name].reshape(shape) for name in ("token", "target_prob", "open_easd")
    )
    kinds, written = np.array(KINDS), target.prod(1)
    found = {"target": shown(mean(np.bincount(owners, weights=written))), "gates": []}
    for rate in options.rate:
        # An overlap of 0 is always met.
        heights = {"easd": (threshold_for(fitted, rate), 0.8)}
        heights["easd, any overlap"] = (threshold_for(fitted, rate, 0.0), 0.0)
        opens = {name: gate(read, *at).reshape(shape) for name, at in heights.items()}
        # At each position of right texts, as often as the target writes them.
        often = {name: written @ each / written.sum() for name, each in opens.items()}
        refused = float(often["easd"].mean())
        often["random refusal"] = np.full(len(KINDS), refused)
        laws = {name: np.where(each, opened, target) for name, each in opens.items()}
        laws["random refusal"] = target + refused * (opened - target)
        exact = {}
        for name, law in laws.items():
            itself, later = changes(tokens, owners, target, law)
            exact[name] = {
                "refused": f"{100 * often[name].mean():.2f} %",
                "change": shown(mean((itself + later).sum(1))),
                "itself": shown(mean(itself.sum(1))),
                "later": shown(mean(later.sum(1))),
                "kinds": {
                    kind: {
                        "refused": f"{100 * often[name][at].mean():.2f} %",
                        "itself": shown(mean(itself[:, at].sum(1))),
                        "later": shown(mean(later[:, at].sum(1))),
                    }
                    for kind, at in ((kind, kinds == kind) for kind in dict.fromkeys(KINDS))
                },
            }
        rules: dict[str, Rule] = {
            name: EASD(tau_h=tau_h, tau_o=tau_o, draft_at_bonus=True)
            for name, (tau_h, tau_o) in heights.items()
        }
        rules["random refusal"] = RandomRefusal(rate=refused, draft_at_bonus=True)
        after = flips(pair, rules, heights, seed, options.texts)
        found["gates"].append({"thresholds": heights, "exact": exact, "decoded": after})
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=1000, help="of the target's training")
    parser.add_argument("--rate", type=float, nargs="+", default=[0.02, 0.1])
    parser.add_argument("--problems", type=int, default=500, help="whose right texts are read")
    parser.add_argument("--texts", type=int, default=5000, help="decoded by each rule")
    parser.add_argument("--out", type=Path, default=Path("runs/refused-tokens"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for seed in options.seed:
        folder = options.out / f"seed-{seed}"
        found = study(trained(folder, seed, options.steps), seed, options)
        text = json.dumps(found, indent=1, ensure_ascii=False)
        (folder / "found.json").write_text(text + "\n", encoding="utf-8")
        print(f"seed {seed}: {text}", flush=True)


if __name__ == "__main__":
    main()
