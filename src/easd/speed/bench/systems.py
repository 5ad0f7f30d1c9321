"""The systems that a benchmark compares, and the timing of one turn of a system."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from time import perf_counter, process_time
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, set_seed

from easd.config import parse_rule
from easd.core.couplings import Coupling
from easd.core.rules import EASD, Rule, Speculative, TargetOnly
from easd.engine.generate import decode, make_requests
from easd.engine.pair import Pair
from easd.engine.record import Recorder
from easd.engine.settings import Settings
from easd.evaluate.config import split_rule
from easd.runs.tally import COUNTED, Tally

Kind = Literal[
    "target",
    "generate",
    "assisted",
    "speculative",
    "block",
    "tempered",
    "block-tempered",
    "adaptive",
    "easd",
    "easd-maximal",
    "easd-adaptive",
    "prompt-lookup",
    "vllm",
    "vllm-speculative",
]
KINDS: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]
UNDRAFTED: tuple[Kind, ...] = ("target", "generate", "vllm")
AUTO: tuple[Kind, ...] = ("speculative", "block", "tempered", "block-tempered", "prompt-lookup")
ADAPTIVE: tuple[Kind, ...] = ("adaptive", "easd-adaptive")  # Decide the length of their blocks.
THEIRS: tuple[Kind, ...] = ("generate", "assisted")  # Decoded by transformers.
VLLM: tuple[Kind, ...] = ("vllm", "vllm-speculative")  # Decoded by `VllmEngines`.
TEMPERED: tuple[Kind, ...] = ("tempered", "block-tempered")  # Need a draft temperature.
LONGEST = 8  # Maximum number of draft tokens in an adaptive block.
LEAST_BLOCK_PROB = 0.4  # See docs/speed.md.
_PROFILE_ROWS = 15


@dataclass(frozen=True, slots=True)
class System:
    """A way to decode; `gamma` is 0 where `kind` drafts nothing or is adaptive, or "auto".

    A kind that is not in `KINDS` is a rule with its fields, such as "pool-everywhere:a=0.9,b=0.2".
    """

    kind: str
    gamma: int | Literal["auto"] = 0

    @property
    def name(self) -> str:
        return self.kind if self.kind in UNDRAFTED + ADAPTIVE else f"{self.kind} {self.gamma}"

    @property
    def most_gamma(self) -> int:
        """Maximum number of draft tokens in a block."""
        return LONGEST if self.gamma == "auto" or self.kind in ADAPTIVE else self.gamma


def systems_of(kinds: Sequence[str], gammas: Sequence[int | Literal["auto"]]) -> list[System]:
    """Returns the systems of these kinds, one for each number of draft tokens where they draft."""
    found: dict[System, None] = {}
    for kind in kinds:
        if kind in UNDRAFTED + ADAPTIVE:
            found[System(kind)] = None
            continue
        for gamma in gammas:
            if gamma != "auto" or kind in AUTO:
                found[System(kind, gamma)] = None
    return list(found)


def rule_of(kind: str) -> Rule:
    """Returns the rule that a kind outside `KINDS` names.

    Raises:
        EasdError: The rule or a field is unknown, or a value does not fit.
    """
    return parse_rule(split_rule(kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Settings of decoding that all systems share.

    Attributes:
        batch: texts decoded at once.
        tokens: maximum number of new tokens per text.
        temperature: 0 decodes greedily.
        draft_temperature: of the tempered systems.
        tau_h: entropy threshold of systems with a gate, in nats.
    """

    batch: int = 1
    tokens: int = 64
    temperature: float = 1.0
    draft_temperature: float | None = None
    tau_h: float = 1.5


@dataclass(slots=True, kw_only=True)
class Timing:
    """Measurements of one turn of one system, in wall time except `cpu_seconds`.

    Attributes:
        seconds, cpu_seconds: of the whole turn, prefill included; `cpu_seconds` sums the processor
            time of this process's threads.
        tally: tokens, draft tokens, and seconds by part of the step.
        forwards: target forwards of the batch; the tally's `blocks` counts them per text.
        operations: torch operations of a step; None where they are not counted.
        full: steps with every row in use, the only ones with comparable forwards; `full_draft`,
            `full_target` and `full_proposed` are their seconds and draft tokens.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    forwards: int = 0
    operations: float | None = None
    full: int = 0
    full_draft: float = 0.0
    full_target: float = 0.0
    full_proposed: int = 0

    def to_row(self) -> dict[str, float | None]:
        """Returns a row of the timings table; parts become `<part>_s`."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tally"}
        counts = {name: getattr(self.tally, name) for name in ("tokens", *COUNTED)}
        return {**own, **counts, **{f"{part}_s": s for part, s in self.tally.seconds.items()}}


def decode_once(
    system: System, pair: Pair, prompts: Sequence[Sequence[int]], load: Load, seed: int
) -> Timing:
    """Decodes every prompt once and measures wall and processor time."""
    decode_all = _theirs if system.kind in THEIRS else _ours
    begin, cpu_begin = perf_counter(), process_time()
    timing = decode_all(system, pair, prompts, load, seed)
    timing.cpu_seconds = process_time() - cpu_begin
    timing.seconds = perf_counter() - begin
    return timing


class _Counting(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def count_operations(
    system: System, pair: Pair, prompts: Sequence[Sequence[int]], load: Load
) -> float | None:
    """Decodes every prompt; returns the median number of torch operations in a step.

    It leaves out the first step, and is None for systems that transformers decodes.
    """
    if system.kind in THEIRS:
        _theirs(system, pair, prompts, load, 0)
        return None
    settings = _settings(system, load, 0)
    with _Counting() as counting:
        counts = [
            counting.count for _ in decode(pair, make_requests(pair, prompts, settings), settings)
        ]
    return float(np.median(np.diff(counts))) if len(counts) > 1 else None


def profiled(system: System, pair: Pair, prompts: Sequence[Sequence[int]], load: Load) -> str:
    """Returns torch.profiler's table of the operations that take longest, by self time."""
    activities = [ProfilerActivity.CPU]
    order = "self_cpu_time_total"
    if pair.target.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        order = "self_cuda_time_total"
    decode_once(system, pair, prompts, load, 0)
    with profile(activities=activities) as found, torch.inference_mode():
        decode_once(system, pair, prompts, load, 1)
    table = found.key_averages().table(
        sort_by=order,
        row_limit=_PROFILE_ROWS,
        max_name_column_width=40,
        top_level_events_only=False,
    )
    return f"{system.name}, {load.batch} at once\n{table}"


def _settings(system: System, load: Load, seed: int) -> Settings:
    gate = EASD(tau_h=load.tau_h)
    rules: dict[str, Rule] = {
        "target": TargetOnly(),
        "easd": gate,
        "easd-maximal": gate,
        "easd-adaptive": replace(gate, draft_at_bonus=True),
    }
    couplings: dict[str, Coupling] = {
        "block": "block",
        "block-tempered": "block",
        "easd-maximal": "maximal",
        "easd-adaptive": "maximal",
    }
    known, adaptive = system.kind in KINDS, system.kind in ADAPTIVE
    return Settings(
        rule=rules.get(system.kind, Speculative()) if known else rule_of(system.kind),
        coupling=couplings.get(system.kind),
        gamma="auto" if system.gamma == "auto" else max(system.most_gamma, 1),
        least_block_prob=LEAST_BLOCK_PROB if adaptive else 0.0,
        drafter="prompt-lookup" if system.kind == "prompt-lookup" else "model",
        temperature=load.temperature,
        draft_temperature=load.draft_temperature if system.kind in TEMPERED else None,
        max_new_tokens=load.tokens,
        batch_size=load.batch,
        seed=seed,
    )


def _ours(
    system: System, pair: Pair, prompts: Sequence[Sequence[int]], load: Load, seed: int
) -> Timing:
    settings = _settings(system, load, seed)
    requests = make_requests(pair, prompts, settings)
    timing = Timing()
    recorder = Recorder(settings.rule, with_gate=False)
    for record in decode(pair, requests, settings):
        recorder.add(record)
        if len(record.rows) == min(load.batch, len(prompts)):
            timing.full += 1
            timing.full_draft += record.seconds["draft"]
            timing.full_target += record.seconds["target"]
            timing.full_proposed += record.step.draft_tokens.shape[1]
    timing.forwards = recorder.target_steps
    timing.tally = recorder.total
    return timing


def _theirs(
    system: System, pair: Pair, prompts: Sequence[Sequence[int]], load: Load, seed: int
) -> Timing:
    """Runs transformers' `generate`: the target alone, or with an assistant one prompt at a time.

    Prompts of a batch are padded on the left; the assistant always drafts `gamma` tokens.
    """
    set_seed(seed)
    size, options = load.batch, {}
    if system.kind == "assisted":
        assistant = assistant_of(pair)
        size, options = 1, {"assistant_model": assistant}
        drafting: Any = assistant.generation_config
        drafting.num_assistant_tokens = system.gamma
        drafting.num_assistant_tokens_schedule = "constant"
        drafting.assistant_confidence_threshold = 0.0
    sampling: dict[str, Any] = {"do_sample": False}
    if load.temperature:
        sampling = {"do_sample": True, "temperature": load.temperature, "top_k": 0, "top_p": 1.0}
    tokenizers: dict[str, Any] = {}
    if pair.draft_tokenizer is not None:
        tokenizers = {"tokenizer": pair.tokenizer, "assistant_tokenizer": pair.draft_tokenizer}
    timing = Timing()
    for first in range(0, len(prompts), size):
        chunk = [list(prompt) for prompt in prompts[first : first + size]]
        longest = max(map(len, chunk))
        lefts = [longest - len(prompt) for prompt in chunk]
        padded = [[0] * left + prompt for left, prompt in zip(lefts, chunk, strict=True)]
        mask = [[0] * left + [1] * (longest - left) for left in lefts]
        output: Any = pair.target.generate(
            torch.tensor(padded, device=pair.target.device),  # type: ignore[arg-type]
            attention_mask=torch.tensor(mask, device=pair.target.device),
            max_new_tokens=load.tokens,
            pad_token_id=0,
            eos_token_id=pair.end_tokens or None,
            **options,
            **sampling,
            **tokenizers,
        )
        timing.tally.tokens += _lengths(output[:, longest:], pair.end_tokens)
    return timing


_assistants: WeakKeyDictionary[PreTrainedModel, PreTrainedModel] = WeakKeyDictionary()


def assistant_of(pair: Pair) -> PreTrainedModel:
    """The draft as transformers' assistant.

    While it samples, transformers replaces the embeddings and the head of an assistant with another
    tokenizer for good, so it gets a copy of those modules that shares all weights.
    """
    assert pair.draft is not None, "checked by the caller"
    if pair.draft_tokenizer is None:
        return pair.draft
    if pair.draft not in _assistants:
        weights = chain(pair.draft.parameters(), pair.draft.buffers())
        _assistants[pair.draft] = copy.deepcopy(pair.draft, {id(each): each for each in weights})
    return _assistants[pair.draft]


def _lengths(texts: Tensor, ends: Sequence[int]) -> int:
    """Counts tokens of texts [B, T] without padding: up to each text's first end token."""
    ended = torch.isin(texts, torch.tensor(ends, device=texts.device)).long()
    return int(((ended.cumsum(1) - ended) == 0).sum())
