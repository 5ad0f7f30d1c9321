"""Ways to decode, and what one timed run of each leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from time import perf_counter, process_time
from typing import Any, Literal

import torch
from transformers import set_seed

from easd.core.rules import EASD, Speculative, TargetOnly
from easd.core.step import Rule
from easd.engine.generate import decode, make_requests
from easd.engine.pair import Pair
from easd.engine.record import Recorder
from easd.engine.settings import Settings
from easd.runs.tally import COUNTED, Tally

Kind = Literal[
    "target",
    "assisted",
    "speculative",
    "adaptive",
    "easd",
    "easd-maximal",
    "easd-adaptive",
    "prompt-lookup",
]
KINDS: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]
LONGEST = 8  # Draft tokens of an adaptive block at most.
LEAST_BLOCK_PROB = 0.4  # See docs/speed.md.


@dataclass(frozen=True, slots=True)
class System:
    """A way to decode with blocks of `gamma` draft tokens; 0 where nothing is drafted."""

    kind: Kind
    gamma: int = 0

    @property
    def name(self) -> str:
        fixed = self.kind not in ("target", "adaptive", "easd-adaptive")
        return f"{self.kind} {self.gamma}" if fixed else self.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What all systems decode alike.

    Attributes:
        batch: texts at once.
        tokens: of each text at most.
        temperature: 0 decodes greedily.
        tau_h: of the systems with a gate, in nats.
    """

    batch: int
    tokens: int
    temperature: float
    tau_h: float


@dataclass(slots=True, kw_only=True)
class Timing:
    """One run of one system.

    Attributes:
        seconds, cpu_seconds: of the whole run, prompts included, by the clock on the wall and by
            the time that all threads of this process computed.
        tally: tokens, draft tokens, and seconds by part of the step.
        forwards: of the target, each for the whole batch; the tally's blocks are each text's own.
        full: steps with every row in use, and `full_draft`, `full_target` their seconds; a
            forward's time is only comparable there.

    All seconds but `cpu_seconds` are wall time.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    forwards: int = 0
    full: int = 0
    full_draft: float = 0.0
    full_target: float = 0.0
    full_proposed: int = 0

    def to_row(self) -> dict[str, float]:
        """A row of the timings table."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tally"}
        counts = {name: getattr(self.tally, name) for name in ("tokens", *COUNTED)}
        return {**own, **counts, **{f"{part}_s": s for part, s in self.tally.seconds.items()}}


def decode_once(
    system: System, pair: Pair, prompts: Sequence[Sequence[int]], load: Load, seed: int
) -> Timing:
    """Decodes every prompt once, with both clocks running."""
    decode_all = _assisted if system.kind == "assisted" else _ours
    begin, cpu_begin = perf_counter(), process_time()
    timing = decode_all(system, pair, prompts, load, seed)
    timing.cpu_seconds = process_time() - cpu_begin
    timing.seconds = perf_counter() - begin
    return timing


def _settings(system: System, load: Load, seed: int) -> Settings:
    gate = EASD(tau_h=load.tau_h, coupling="as_published")
    rules: dict[str, Rule] = {
        "target": TargetOnly(),
        "easd": gate,
        "easd-maximal": replace(gate, coupling="maximal"),
        "easd-adaptive": replace(gate, coupling="maximal", gate_bonus=True),
    }
    adaptive = system.kind in ("adaptive", "easd-adaptive")
    return Settings(
        rule=rules.get(system.kind, Speculative()),
        gamma=LONGEST if adaptive else max(system.gamma, 1),
        least_block_prob=LEAST_BLOCK_PROB if adaptive else 0.0,
        drafter="prompt-lookup" if system.kind == "prompt-lookup" else "model",
        temperature=load.temperature,
        max_new_tokens=load.tokens,
        batch_size=load.batch,
        seed=seed,
    )


def _ours(
    system: System, pair: Pair, prompts: Sequence[Sequence[int]], load: Load, seed: int
) -> Timing:
    settings = _settings(system, load, seed)
    models = [pair.target, pair.draft]
    requests = make_requests(models, prompts, settings, pair.tokenizer)
    timing = Timing()
    recorder = Recorder(settings.rule, with_gate=False)
    for record in decode(pair.target, pair.draft, requests, settings):
        recorder.add(record)
        if len(record.rows) == min(load.batch, len(prompts)):
            timing.full += 1
            timing.full_draft += record.seconds["draft"]
            timing.full_target += record.seconds["target"]
            timing.full_proposed += record.step.draft_tokens.shape[1]
    timing.forwards = recorder.target_steps
    timing.tally = recorder.total
    return timing


def _assisted(
    system: System, pair: Pair, prompts: Sequence[Sequence[int]], load: Load, seed: int
) -> Timing:
    """Transformers' own, which takes one prompt at a time; it drafts `gamma` tokens in any case."""
    assert pair.draft is not None
    set_seed(seed)
    drafting = pair.draft.generation_config
    drafting.num_assistant_tokens = system.gamma
    drafting.num_assistant_tokens_schedule = "constant"
    drafting.assistant_confidence_threshold = 0.0
    sampling: dict[str, Any] = {"do_sample": False}
    if load.temperature:
        sampling = {"do_sample": True, "temperature": load.temperature, "top_k": 0, "top_p": 1.0}
    timing = Timing()
    for prompt in prompts:
        ids = torch.tensor([prompt], device=pair.target.device)
        output: Any = pair.target.generate(
            ids,  # type: ignore[arg-type]
            attention_mask=torch.ones_like(ids),
            max_new_tokens=load.tokens,
            pad_token_id=0,
            assistant_model=pair.draft,
            **sampling,
        )
        timing.tally.tokens += output.shape[1] - len(prompt)
    return timing
