"""One script for the first quarter of an hour on a GPU: is everything right there, and how fast?

    make gpu                                        # or: python benchmarks/gpu.py --out runs/gpu
    python benchmarks/gpu.py --tiny --out /tmp/gpu  # the same on a CPU, with tiny models

The parts run in processes of their own, what matters most first, each with its share of the time;
one that fails or runs out of time does not stop the others. Writes `gpu.json` and `gpu.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).parents[1]
# Tests with the seconds that each may take, and what has to be chosen for it.
ENGINE = ("engine", "slots", "processors", "sequences", "graphs")
TESTS = {
    "kernels": (60, ["-m", "vllm", "tests/in_vllm/kernels"]),
    "noise": (30, ["tests/device/test_noise.py"]),
    "engine": (120, [f"tests/end_to_end/test_{name}.py" for name in ENGINE]),
    "laws": (80, ["tests/laws/test_laws.py"]),
    "drop-in": (60, ["tests/end_to_end/test_transformers.py"]),
    "lab": (60, ["tests/device/test_lab.py"]),
    "engine, without graphs": (120, [f"tests/end_to_end/test_{name}.py" for name in ENGINE]),
}
NEEDED = ["torch", "transformers", "pytest", "hypothesis", "cyclopts", "docstring_parser"]
PARALLEL = ["-n", "12"] if find_spec("xdist") else []
MEASURED = {
    "bandwidth": 60,
    "lab-a": 60,
    "verification": 60,
    "steps": 90,
    "large": 120,
    "largest": 120,
}

GAMMA = 4
VOCABULARY = 152_064
# Of Qwen2.5 7B and 0.5B, and of Qwen3 32B and 0.6B.
SHAPES = {
    "large": {
        "target": ("qwen2", 3584, 28, 18_944, 28, 4),
        "draft": ("qwen2", 896, 24, 4864, 14, 2),
    },
    "largest": {
        "target": ("qwen3", 5120, 64, 25_600, 64, 8),
        "draft": ("qwen3", 1024, 28, 3072, 16, 8),
    },
}
SPREAD = 4.5  # Of the logits: entropies as wide as a language model's at temperature 1.
ACCEPTANCE = 0.8
SYSTEMS = ("target", "speculative", "easd", "easd-maximal", "assisted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs/gpu")
    parser.add_argument("--seconds", type=float, default=480, help="for everything")
    parser.add_argument("--tiny", action="store_true", help="tiny models, on a CPU too")
    parser.add_argument("--only", nargs="*", help="these parts alone")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        parser.error(f"{', '.join(missing)} cannot be imported here; install what easd depends on")
    if args.part:
        print(json.dumps(MEASURE[args.part](args.tiny)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + args.seconds
    found: dict[str, Any] = {"machine": machine()}
    for name, limit in {**{n: t[0] for n, t in TESTS.items()}, **MEASURED}.items():
        if args.only and name not in args.only:
            continue
        left = min(limit, end - time.monotonic())
        begin = time.monotonic()
        print(f"{name} ...", flush=True)
        if left < 5:
            found[name] = {"state": "no time left"}
        elif name in TESTS:
            found[name] = tested(name, left, args.out)
        else:
            found[name] = measured(name, left, args.tiny, args.out)
        found[name]["wall_s"] = round(time.monotonic() - begin, 1)
        (args.out / "gpu.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(json.dumps(found[name]), flush=True)
    (args.out / "gpu.md").write_text(page(found), encoding="utf-8")
    print(page(found))


def machine() -> dict[str, Any]:
    import torch
    import transformers

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": gpu.name if gpu else "CPU",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def environment(**extra: str) -> dict[str, str]:
    import torch

    paths = [str(ROOT / "src"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "EASD_FUSED": "1",
        "EASD_TEST_DEVICE": "cuda" if torch.cuda.is_available() else "cpu",
        **extra,
    }


def tested(name: str, seconds: float, out: Path) -> dict[str, Any]:
    """Runs tests on the device; how many passed, and which did not."""
    command = [sys.executable, "-m", "pytest", "-W", "ignore", "--tb=short", *PARALLEL]
    try:
        done = subprocess.run(
            [*command, *TESTS[name][1]],
            cwd=ROOT,
            env=environment(EASD_GRAPHS="0" if "without graphs" in name else "1"),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        printed, state = done.stdout + done.stderr, "ok" if done.returncode == 0 else "failed"
    except subprocess.TimeoutExpired as over:
        printed, state = (over.stdout or b"").decode(), "out of time"
    (out / f"{name.replace(', ', '-')}.log").write_text(printed, encoding="utf-8")
    counts = {
        what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", printed)
    }
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", printed, re.MULTILINE)
    return {"state": state, **counts, "not passed": [line[:300] for line in failed[:10]]}


def measured(name: str, seconds: float, tiny: bool, out: Path) -> dict[str, Any]:
    """Runs one measurement of `MEASURE` in a process of its own."""
    command = [sys.executable, __file__, "--part", name, *(["--tiny"] if tiny else [])]
    try:
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"state": "out of time"}
    (out / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        return {"state": "failed", "error": done.stderr.strip()[-600:]}
    return {"state": "ok", **json.loads(done.stdout.strip().splitlines()[-1])}


def lab_pair(tiny: bool) -> dict[str, Any]:
    """Tokens a second of the smallest pair, whose steps are calls and nothing else."""
    from easd import load_pair
    from easd.pairs import lab

    pair = load_pair("lab-a")
    problems = lab.problems("lab-a", 64, seed=0)
    prompts = [pair.tokenizer(problem.prompt)["input_ids"] for problem in problems]
    return turns(pair, prompts, batches=(1, 16), tokens=24, rounds=3 if tiny else 8, tau_h=0.34)


def large_pair(tiny: bool) -> dict[str, Any]:
    """The same for a pair of Qwen2.5 7B's and 0.5B's shape, accepted as often as is asked for."""
    return pair_of("large", tiny, batches=(1, 16), tokens=128)


def largest_pair(tiny: bool) -> dict[str, Any]:
    """The same for Qwen3 32B's and 0.6B's shape, whose target is as much of a GPU as fits."""
    return pair_of("largest", tiny, batches=(1,), tokens=256, assisted=False)


def pair_of(shape: str, tiny: bool, *, tokens: int, **of: Any) -> dict[str, Any]:
    pair, reached, tau_h = made(shape, tiny)
    of |= {"tokens": 16 if tiny else tokens, "rounds": 2, "tau_h": tau_h}
    told = turns(pair, random_prompts(pair), **of)
    return {"acceptance of one token": reached, "tau_h": tau_h, "peak GB": peak(), **told}


def steps(tiny: bool) -> dict[str, Any]:
    from gpu_steps import measure

    pair, _, tau_h = made("large", tiny)
    return measure(pair, random_prompts(pair), GAMMA, tau_h)


def random_prompts(pair: Any) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(pair.target.config.vocab_size, (16, 64), generator=generator).tolist()


def peak() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def turns(
    pair: Any, prompts: list[list[int]], *, batches: tuple[int, ...], **of: Any
) -> dict[str, Any]:
    """Every system in turn at every batch size: tokens a second, their ratios, parts of a step."""
    from easd.runs import Tally
    from easd.speed.bench.systems import Load, System, Timing, decode_once

    found: dict[str, Any] = {}
    for batch in batches:
        load = Load(batch=batch, tokens=of["tokens"], temperature=1.0, tau_h=of["tau_h"])
        kinds = SYSTEMS if batch == 1 and of.get("assisted", True) else SYSTEMS[:-1]
        runs: dict[str, list[Timing]] = {kind: [] for kind in kinds}
        for number in range(of["rounds"] + 1):
            chosen = [prompts[(number * batch + i) % len(prompts)] for i in range(batch)]
            for kind in kinds:
                timing = decode_once(System(kind, GAMMA), pair, chosen, load, number)
                if number:  # The first warms up.
                    runs[kind].append(timing)
        for kind, timings in runs.items():
            steps = sum(timing.forwards for timing in timings)
            speeds = [timing.tally.tokens / timing.seconds for timing in timings]
            base = [timing.tally.tokens / timing.seconds for timing in runs["target"]]
            told = {
                "tok/s": median(speeds),
                "over target": median(a / b for a, b in zip(speeds, base, strict=True)),
            }
            if steps:
                total = Tally()
                for timing in timings:
                    total += timing.tally
                told |= {
                    "ms a step": 1e3 * sum(timing.seconds for timing in timings) / steps,
                    "tokens a forward": total.block_efficiency,
                    "accepted": total.acceptance_rate,
                    "penalised": total.penalty_rate,
                }
            found[f"{kind}, {batch} at once"] = told
    return found


@cache
def made(shape: str, tiny: bool) -> tuple[Any, float, float]:
    """Random models whose layers are computed in full and say next to nothing.

    The residual stream is then the last token's embedding, and both heads read it: the target's
    embedding and head repeat the draft's (3584 = 4 * 896), with as much noise on its head as makes
    the acceptance rate what is wanted.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from easd import Pair
    from easd.core.signals import entropy

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if tiny else torch.bfloat16
    vocab_size = 512 if tiny else VOCABULARY
    torch.manual_seed(0)
    models = {}
    for role, (family, hidden, layers, inner, heads, key_heads) in SHAPES[shape].items():
        config = AutoConfig.for_model(
            family,
            vocab_size=vocab_size,
            tie_word_embeddings=False,
            max_position_embeddings=4096,
            hidden_size=hidden,
            num_hidden_layers=2 if tiny else layers,
            intermediate_size=64 if tiny else inner,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
        )
        with torch.device(device):
            models[role] = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        models[role].generation_config.eos_token_id = None
        for layer in models[role].model.layers:
            layer.self_attn.o_proj.weight.data.mul_(1e-3)
            layer.mlp.down_proj.weight.data.mul_(1e-3)
    draft, target = models["draft"], models["target"]
    width, times = draft.config.hidden_size, target.config.hidden_size // draft.config.hidden_size
    embedding = torch.randn(vocab_size, width, device=device, dtype=dtype)
    head = torch.randn(vocab_size, width, device=device, dtype=dtype) * SPREAD / width**0.5
    noise = torch.randn(vocab_size, width, device=device, dtype=dtype) * SPREAD / width**0.5
    draft.model.embed_tokens.weight.data.copy_(embedding)
    target.model.embed_tokens.weight.data.copy_(embedding.repeat(1, times))
    draft.lm_head.weight.data.copy_(head)
    some = embedding[:64].float()
    some = some / some.square().mean(-1, keepdim=True).sqrt()

    def accepted(share: float) -> float:
        q = (some @ head.float().T).softmax(-1)
        p = (some @ mixed(head, noise, share).float().T).softmax(-1)
        return torch.minimum(p, q).sum(-1).mean().item()

    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if accepted(middle) > ACCEPTANCE else (low, middle)
    target.lm_head.weight.data.copy_(mixed(head, noise, low).repeat(1, times) / times)
    tokenizer: Any = None
    pair = Pair(name=shape, target=target, draft=draft, tokenizer=tokenizer)
    tau_h = entropy((some @ head.float().T).softmax(-1)).quantile(0.9).item()
    return pair, accepted(low), tau_h


def mixed(head: Any, noise: Any, share: float) -> Any:
    return (1 - share**2) ** 0.5 * head + share * noise


def verified(rule: Any, step: Any, noise: Any, coupling: Any) -> Callable[[], object]:
    from easd.core.verify import verify

    return lambda: verify(rule, step, noise, coupling)


def verification(tiny: bool) -> dict[str, Any]:
    """Milliseconds of `verify` at a vocabulary of 152k, with kernels and without, and of the GPU.

    Events around it on a stream that has nothing else to do, so launches count where they are what
    it waits for.
    """
    import torch

    from easd.core.noise import Noise
    from easd.core.rules import EASD, Speculative
    from easd.core.step import Step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    vocab_size = 512 if tiny else VOCABULARY
    rules = {
        "speculative": (Speculative(), "maximal"),
        "easd": (EASD(tau_h=2.0), "published"),
        "easd-maximal": (EASD(tau_h=2.0, draft_at_bonus=True), "maximal"),
    }
    found: dict[str, Any] = {}
    for batch in (1, 16):
        logits = SPREAD * torch.randn(batch, GAMMA + 1, vocab_size, device=device)
        near = logits + torch.randn_like(logits)
        step = Step(
            draft_tokens=torch.randint(vocab_size, (batch, GAMMA), device=device),
            num_draft_tokens=torch.full((batch,), GAMMA, device=device),
            draft_probs=near.softmax(-1),
            target_probs=logits.softmax(-1),
        )
        noise = Noise(
            keys=torch.arange(batch, device=device),
            start=torch.zeros(batch, dtype=torch.long, device=device),
        )
        for kernels in ("0", "1"):
            os.environ["EASD_KERNELS"] = kernels
            for name, (rule, coupling) in rules.items():
                times = list(clocked(verified(rule, step, noise, coupling), 3 if tiny else 40))
                low, middle, high = quantiles(times, n=4)
                key = f"{name}, {batch} at once, {'kernels' if kernels == '1' else 'torch'}"
                found[key] = {"ms": 1e3 * middle, "quartiles": [1e3 * low, 1e3 * high]}
    return found


def clocked(call: Callable[[], object], repeats: int) -> Iterator[float]:
    import torch

    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for number in range(repeats + 3):
        synchronize()
        begin = time.perf_counter()
        call()
        synchronize()
        if number >= 3:
            yield time.perf_counter() - begin


def bandwidth(tiny: bool) -> dict[str, Any]:
    from kernels_gpu import measure

    return measure()


MEASURE: dict[str, Callable[[bool], dict[str, Any]]] = {
    "bandwidth": bandwidth,
    "lab-a": lab_pair,
    "verification": verification,
    "steps": steps,
    "large": large_pair,
    "largest": largest_pair,
}


def page(found: dict[str, Any]) -> str:
    """The findings as Markdown."""
    lines = [" · ".join(str(value) for value in found["machine"].values()), ""]
    lines += ["| tests | state | passed | failed | s |", "|---|---|---|---|---|"]
    for name in TESTS:
        if name in found:
            told = found[name]
            counts = [str(told.get(what, "")) for what in ("passed", "failed")]
            lines.append(f"| {name} | {told['state']} | {' | '.join(counts)} | {told['wall_s']} |")
    for name in MEASURED:
        told = found.get(name, {})
        lines += ["", f"**{name}**: {told.get('state', 'not run')}"]
        rows = {key: value for key, value in told.items() if isinstance(value, dict)}
        lines += [f"{key}: {value}" for key, value in told.items() if key not in rows]
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        if rows:
            lines += ["", f"| {name} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for key, row in rows.items():
            lines.append(f"| {key} | {' | '.join(shown(row.get(c)) for c in columns)} |")
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(shown, value))
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


if __name__ == "__main__":
    main()
