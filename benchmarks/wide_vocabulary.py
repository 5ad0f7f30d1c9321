"""The share of a step that verification takes at a vocabulary of 152k, on a CPU.

    python benchmarks/wide_vocabulary.py --threads 2

A pair of Qwen2.5's shapes (1.5B and 0.5B) with random weights takes the same steps as a trained
one, but for its texts: nearly every block ends at its first token. The two models have no top token
in common, so the gate asks with tau_o = 0, and tau_h is what opens it at `--rate` of the positions
of a first text. In float32 the pair and its packed weights need 17 GB, in bfloat16 4.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from statistics import mean, median, quantiles

import torch
from common import describe, quiet
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from easd import EASD, Settings, Speculative
from easd.core.couplings import Coupling
from easd.core.rules import Rule
from easd.core.signals import entropy
from easd.engine.engine import StepRecord
from easd.engine.generate import decode, make_requests
from easd.engine.pair import Pair

VOCABULARY = 151_936
SHAPES = {
    "target": {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
    },
    "draft": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
    },
}
# Makes logits of untrained models spread about as widely as those of trained ones.
SHARPER = 5
PROMPT = 64
PARTS = ("draft", "target", "verify", "commit")


def build(role: str, layers: int | None, dtype: torch.dtype) -> PreTrainedModel:
    """A model of a Qwen2.5's shape with random weights."""
    shape = SHAPES[role] | ({} if layers is None else {"num_hidden_layers": layers})
    config = Qwen2Config(
        vocab_size=VOCABULARY, num_key_value_heads=2, tie_word_embeddings=True, **shape
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        model.model.norm.weight.fill_(SHARPER)
    return model


def steps(
    pair: list[PreTrainedModel], rule: Rule, coupling: Coupling, args: argparse.Namespace
) -> Iterator:
    """Records of `args.steps` steps and a first one, which reads the prompt."""
    settings = Settings(
        rule=rule,
        coupling=coupling,
        gamma=args.gamma,
        max_new_tokens=(args.steps + 2) * (args.gamma + 1),
    )
    prompt = torch.randint(VOCABULARY, (PROMPT,), generator=torch.Generator().manual_seed(0))
    models = Pair.of(*pair)
    return decode(models, make_requests(models, [prompt.tolist()], settings), settings)


def threshold(records: Iterator[StepRecord], args: argparse.Namespace) -> float:
    """The entropy that both models exceed at a share `args.rate` of drafted positions."""
    found = []
    for record, _ in zip(records, range(args.steps), strict=False):
        step = record.step
        count = step.draft_tokens.shape[1]
        both = torch.minimum(entropy(step.draft_probs), entropy(step.target_probs))
        found.append(both[0, :count])
    return torch.cat(found).quantile(1 - args.rate).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gamma", type=int, default=5)
    parser.add_argument("--rate", type=float, default=0.05, help="positions with an open gate")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--layers", type=int, help="cuts both models, for a quick try")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    pair = [build(role, args.layers, getattr(torch, args.dtype)) for role in SHAPES]
    tau_h = threshold(steps(pair, Speculative(), "maximal", args), args)
    systems: dict[str, tuple[Rule, Coupling]] = {
        "speculative": (Speculative(), "maximal"),
        "easd": (EASD(tau_h=tau_h, tau_o=0.0), "published"),
        "easd-maximal": (EASD(tau_h=tau_h, tau_o=0.0), "maximal"),
    }
    running = {name: steps(pair, *system, args) for name, system in systems.items()}
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    opened: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(args.steps + 1):
        for name, records in running.items():
            record = next(records)
            if number:  # the first reads the prompt
                seconds[name].append(record.seconds)
                gate = record.decision.judgement.signals.get("gate", torch.zeros(1, 1))
                opened[name].append(gate[:, : args.gamma].mean().item())
    print(f"{describe()}, {args.dtype}, V = {VOCABULARY}, gamma {args.gamma}, 1 text")
    print(f"tau_h = {tau_h:.2f}; medians and quartiles of {args.steps} steps taken in turn")
    for name, found in seconds.items():
        parts = " ".join(f"{part} {1000 * median(s[part] for s in found):.1f}" for part in PARTS)
        shares = [100 * s["verify"] / sum(s[part] for part in PARTS) for s in found]
        low, middle, high = quantiles(shares, n=4)
        print(
            f"{name:13} verify is {middle:.2f} % of a step [{low:.2f}, {high:.2f}]; "
            f"ms: {parts}; gate open at {100 * mean(opened[name]):.1f} %"
        )


if __name__ == "__main__":
    main()
