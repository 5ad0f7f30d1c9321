"""Exact accuracy of decoding rules on the `lab` pairs, without decoding.

A lab problem has one right written solution, so a rule solves it with probability
prod law(reference token | reference prefix): one teacher-forced pass of both models gives every
rule's accuracy, and the only error left is that of the sample of problems.

    python benchmarks/lab_exact.py [PAIR ...] [--problems 10000] [--rate 0.02] [--json FILE]
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import quiet
from easd.core.rules.entropy_gate import gate_signals
from torch import Tensor
from transformers import PreTrainedModel

from easd import EASD, RandomRefusal, Speculative, load_pair
from easd.core.rules import Rule
from easd.core.step import Step
from easd.pairs import lab

RATES = (0.005, 0.01, 0.02, 0.05)
CHUNK = 1000
SEED = 20


@dataclass(frozen=True)
class Reference:
    """Both models' distributions at every position of N reference solutions of T tokens."""

    tokens: Tensor  # int64 [N, T]
    draft_probs: Tensor  # [N, T, V]
    target_probs: Tensor  # [N, T, V]
    deciding: Tensor  # bool [T]

    def steps(self) -> list[Step]:
        """The solutions as verification steps whose last position is a bonus position."""
        length = self.tokens.shape[1] - 1
        return [
            Step(
                draft_tokens=tokens[:, :-1],
                num_draft_tokens=torch.full((len(tokens),), length),
                draft_probs=draft_probs,
                target_probs=target_probs,
            )
            for tokens, draft_probs, target_probs in zip(
                self.tokens.split(CHUNK),
                self.draft_probs.split(CHUNK),
                self.target_probs.split(CHUNK),
                strict=True,
            )
        ]

    def each(self, function: Callable[[Step], Tensor]) -> Tensor:
        """`function` of all positions, computed in chunks to bound memory."""
        return torch.cat([function(step) for step in self.steps()])

    def solved(self, probs: Tensor) -> Tensor:
        """Probability [N] that drawing from `probs` [N, T, V] writes the reference solution."""
        return probs.gather(-1, self.tokens[..., None])[..., 0].double().prod(-1)


def read_reference(pair: str, count: int) -> Reference:
    """One teacher-forced pass of both models over `count` test problems."""
    problems = lab.problems(pair, count, SEED)
    models = load_pair(pair, device="cpu")
    texts = [f"{p.prompt} {p.solution} {lab.EOS}" for p in problems]
    ids = models.tokenizer(texts, return_tensors="pt").input_ids
    length = len(problems[0].solution.split()) + 1

    def probs(model: PreTrainedModel) -> Tensor:
        with torch.inference_mode():
            logits = [model(b[:, :-1], logits_to_keep=length).logits for b in ids.split(CHUNK)]
        return torch.cat(logits).softmax(-1)

    deciding = torch.zeros(length, dtype=torch.bool)
    deciding[list(lab.deciding_positions(problems[0]))] = True
    return Reference(ids[:, -length:], probs(models.draft), probs(models.target), deciding)


def threshold(reference: Reference, rate: float) -> float:
    """The `tau_h` at which the default gate is open at a share `rate` of all positions."""
    rule = EASD()

    def highest(step: Step) -> Tensor:
        """The largest `tau_h` below which each position's gate is open."""
        signals = gate_signals(step.draft_probs, step.target_probs, rule.top_n)
        both = torch.minimum(signals["draft_entropy"], signals["target_entropy"])
        return torch.where(signals["shared_top"] >= rule.required_shared, both, 0.0)

    values = reference.each(highest).flatten()
    return values.sort().values[-1 - round(rate * len(values))].item()


def mean(values: Tensor) -> dict[str, float]:
    """Mean and half-width of its 95 % interval, in points."""
    half_width = 1.96 * values.std().item() / len(values) ** 0.5
    return {"mean": 100 * values.mean().item(), "half_width": 100 * half_width}


def measure(pair: str, count: int, rate: float) -> dict:
    """Everything that is printed about one pair."""
    reference = read_reference(pair, count)
    target_probs, draft_probs = reference.target_probs, reference.draft_probs
    thresholds = []
    for wanted in sorted({*RATES, rate}):
        tau_h = threshold(reference, wanted)
        gate = reference.each(
            lambda step, tau_h=tau_h: EASD(tau_h=tau_h, draft_at_bonus=True).signals(step)["gate"]
        )
        share = gate[:, reference.deciding].sum() / gate.sum()
        thresholds.append(
            {
                "rate": wanted,
                "tau_h": tau_h,
                "fired": gate.mean().item(),
                "on_deciding": share.item(),
            }
        )
    chosen = next(row for row in thresholds if row["rate"] == rate)
    gated = {"tau_h": chosen["tau_h"], "draft_at_bonus": True}
    rules: dict[str, Rule] = {
        "speculative": Speculative(),
        "easd exclude/drafted": EASD(**gated),
        "easd exclude/draft_top": EASD(**gated, penalise="draft_top"),
        "easd, gate on accepted": EASD(**gated, gate_on="accepted"),
        "easd redraw target": EASD(**gated, redraw="target"),
        "random refusal": RandomRefusal(rate=chosen["fired"], draft_at_bonus=True),
    }
    solved = {
        "target": reference.solved(target_probs),
        "draft": reference.solved(draft_probs),
        **{name: reference.solved(reference.each(rule.law)) for name, rule in rules.items()},
        "target, temperature 0.5": reference.solved(sharpened(target_probs, 2)),
        "target, greedy": reference.solved(greedy(target_probs)),
        "draft, greedy": reference.solved(greedy(draft_probs)),
    }
    return {
        "pair": pair,
        "problems": count,
        "acceptance": torch.minimum(target_probs, draft_probs).sum(-1).mean().item(),
        "deciding_positions": reference.deciding.float().mean().item(),
        "thresholds": thresholds,
        "tau_h": chosen["tau_h"],
        "accuracy": {name: mean(values) for name, values in solved.items()},
        "minus_target": {name: mean(values - solved["target"]) for name, values in solved.items()},
    }


def sharpened(probs: Tensor, power: float) -> Tensor:
    return probs.pow(power) / probs.pow(power).sum(-1, keepdim=True)


def greedy(probs: Tensor) -> Tensor:
    return torch.zeros_like(probs).scatter(-1, probs.argmax(-1, keepdim=True), 1.0)


def show(result: dict) -> None:
    print(
        f"\n{result['pair']}: {result['problems']} problems, "
        f"acceptance {result['acceptance']:.3f}, "
        f"{result['deciding_positions']:.0%} of positions decide the answer"
    )
    for row in result["thresholds"]:
        print(
            f"  gate open at {row['fired']:6.2%} of positions: tau_h {row['tau_h']:.2f} nats, "
            f"{row['on_deciding']:.1%} of openings decide"
        )
    print(f"  at tau_h {result['tau_h']:.2f}, in % and points (95 % intervals):")
    for name, value in result["accuracy"].items():
        change = result["minus_target"][name]
        print(
            f"    {name:26} {value['mean']:5.1f} ± {value['half_width']:.1f}"
            f"   minus target {change['mean']:+6.2f} ± {change['half_width']:.2f}"
        )


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", nargs="*", default=list(lab.RECIPES))
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=0.02, help="share of gated positions")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    for pair in arguments.pairs:
        results.append(measure(pair, arguments.problems, arguments.rate))
        show(results[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
