"""What int8 weights do to a draft: the acceptance rate they leave, and the time of a forward.

    python benchmarks/int8_draft.py --pair smollm2 --threads 2

The acceptance rate is the overlap of draft and target, sum of min(p, q), at every position of texts
that the target wrote. Forwards of one token a text are taken in turns.
"""

from __future__ import annotations

import argparse
from time import perf_counter

import torch
from common import PROMPTS, describe, interval, quiet

from easd import generate, load_pair
from easd.core.rules import TargetOnly
from easd.engine.chat import encode
from easd.engine.models.slots import SlotModel

CONTEXT = 150


@torch.inference_mode()
def acceptance(pair, texts) -> float:
    total = positions = 0.0
    for text in texts:
        ids = torch.tensor([[*text.prompt_ids, *text.token_ids]])
        first = len(text.prompt_ids) - 1
        target, draft = (
            model(ids).logits[0, first:-1].softmax(-1) for model in (pair.target, pair.draft)
        )
        total += torch.minimum(target, draft).sum().item()
        positions += len(target)
    return total / positions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--copies", type=int, default=3, help="texts of each prompt")
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(args.threads)
    pairs = {
        "float32": load_pair(args.pair, device="cpu"),
        "int8": load_pair(args.pair, device="cpu", int8_draft=True),
    }
    plain = pairs["float32"]
    prompts = [encode(prompt, plain.tokenizer) for prompt in PROMPTS * args.copies]
    options = {"rule": TargetOnly(), "max_new_tokens": 96, "batch_size": 24}
    texts = generate(plain.target, None, prompts, tokenizer=plain.tokenizer, **options)
    print(f"{describe()}, {sum(len(text.token_ids) for text in texts)} positions")
    for name, pair in pairs.items():
        print(f"{name:8} acceptance rate {acceptance(pair, texts):.4f}")
    for rows in (1, 4, 8, 16, 32):
        models = {name: SlotModel(pair.draft, rows) for name, pair in pairs.items()}
        times: dict[str, list[float]] = {name: [] for name in models}
        for model in models.values():
            model.prefill(0, [list(range(5, 5 + CONTEXT))] * rows)
        token = torch.full((rows, 1), 7)
        for _ in range(args.repeats):
            for name, model in models.items():
                begin = perf_counter()
                with torch.inference_mode():
                    model.forward(token)
                times[name].append(1000 * (perf_counter() - begin))
        ratios = [a / b for a, b in zip(times["float32"][5:], times["int8"][5:], strict=True)]
        middle = [interval(times[name][5:])[0] for name in models]
        print(
            f"{rows:2} texts: {middle[0]:6.2f} ms, int8 {middle[1]:6.2f} ms, "
            "{:.2f} times as fast [{:.2f}, {:.2f}]".format(*interval(ratios))
        )


if __name__ == "__main__":
    main()
