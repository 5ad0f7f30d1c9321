"""Measures this machine as `Hardware`.

Products are timed first, then layers less their products, then steps less their forwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import skip_init
from torch.utils.benchmark import Timer
from transformers import LlamaConfig, LlamaForCausalLM

from easd.core.rules import EASD, TargetOnly
from easd.engine.generate import decode, make_requests
from easd.engine.models.packing import PackedLinears
from easd.engine.models.slots import SlotModel
from easd.engine.pair import Pair
from easd.engine.settings import Settings
from easd.speed.plan.cost_model import CostModel, Shape
from easd.speed.plan.hardware import Hardware, ProductTable

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_SIDES = (64, 256, 512, 1024, 2048)
_WEIGHTS = 2**25  # 128 MB of float32, far more than a cache holds.
_MOST = 256  # Maximum number of matrices: small ones fit in a cache, as they do in a model.
_NARROW, _WIDE = 64, 512  # Hidden sizes.
_LAYERS = 10
_TEXTS, _TOKENS = 8, 3
_SHORT, _LONG = 32, 288  # Tokens of context.
_VOCABULARIES = (64, 65_536)
_GAMMA = 4
_TIMING_SECONDS = 0.2  # Spent on each timing.


@torch.inference_mode()
def measure_here(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Hardware:
    """Measures this machine in about half a minute, with torch's current number of threads."""
    products = _products(dtype, device)
    memory = torch.randn(_WEIGHTS, device=device)
    hardware = Hardware(
        name="this machine",
        memory_gb=memory_gb(device),
        bandwidth_gbs=memory.nbytes / seconds_of(memory.sum) / 1e9,
        bandwidth_share=1.0,
        tflops=products.operations_per_second() / 1e12,
        flops_share=1.0,
        layer_us=0.0,
        step_us=0.0,
        draw_ns=0.0,
        verify_ns=0.0,
        cached_ns=0.0,
        products=products,
    )
    return _with_steps(_with_layers(hardware, dtype, device), dtype, device)


def describe(hardware: Hardware) -> str:
    """Summarises measured hardware in one line."""
    table = hardware.products
    assert table is not None
    return (
        f"{hardware.bandwidth_gbs:.1f} GB/s, {table.entries[-1] / table.seconds[0][-1] / 1e9:.2f} "
        f"G weights/s for one text, {1000 * hardware.tflops:.0f} GFLOP/s for {table.rows[-1]}, "
        f"{hardware.layer_us:.0f} us a layer, {hardware.step_us:.0f} us a step"
    )


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns seconds per call, after a warm-up and with the device synchronised."""
    call()
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return undisturbed(timer.blocked_autorange(min_run_time=_TIMING_SECONDS).times)


def undisturbed(seconds: Sequence[float]) -> float:
    """Returns the lower quartile: slower samples mostly measure other load on the machine."""
    return float(np.quantile(seconds, 0.25))


def fixed_and_slope(amounts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Returns intercept and slope of a least-squares line, neither below zero."""
    around = np.asarray(amounts) - np.mean(amounts)
    slope = max(0.0, float(around @ np.asarray(seconds) / (around @ around)))
    fixed = float(np.mean(seconds)) - slope * float(np.mean(amounts))
    if fixed >= 0:
        return fixed, slope
    return 0.0, max(0.0, float(np.dot(amounts, seconds) / np.dot(amounts, amounts)))


def _products(dtype: torch.dtype, device: str) -> ProductTable:
    columns = [_product_seconds(side, dtype, device) for side in _SIDES]
    return ProductTable(
        rows=_ROWS,
        entries=tuple(side**2 for side in _SIDES),
        seconds=tuple(zip(*columns, strict=True)),
    )


def _product_seconds(side: int, dtype: torch.dtype, device: str) -> list[float]:
    """Returns seconds of a product with a square matrix, for each number of rows."""
    count = min(_MOST, _WEIGHTS // side**2)
    options = {"bias": False, "dtype": dtype, "device": device}
    matrices = nn.Sequential(*(skip_init(nn.Linear, side, side, **options) for _ in range(count)))
    for weight in matrices.parameters():
        weight.fill_(1 / side)
    vectors = [torch.randn(rows, 1, side, dtype=dtype, device=device) for rows in _ROWS]
    with PackedLinears(matrices):
        return [seconds_of(partial(matrices, each)) / count for each in vectors]


def _with_layers(hardware: Hardware, dtype: torch.dtype, device: str) -> Hardware:
    """Adds the overhead of a layer outside its products, and of a forward outside its layers."""
    bare = _llama(_WIDE, 0, dtype, device)
    found = replace(hardware, forward_us=1e6 * _forward_seconds(bare, 1, 1, 1))
    entries, rests = [], []
    for hidden in (_NARROW, _WIDE):
        model = _llama(hidden, _LAYERS, dtype, device)
        costs = CostModel(hardware=found, target=Shape.of(model, ""))
        for texts, tokens in ((1, 1), (1, 4), (4, 4), (16, 4)):
            taken = _forward_seconds(model, texts, tokens, 1)
            known = costs.forward_seconds(costs.target, texts, tokens, 1)
            entries.append(texts * tokens * hidden)
            rests.append((taken - known) / _LAYERS)
    fixed, slope = fixed_and_slope(entries, rests)
    short, long = (_forward_seconds(model, _TEXTS, _TOKENS, n) for n in (_SHORT, _LONG))
    cached = (_LONG - _SHORT) * _TEXTS * costs.target.cached
    return replace(
        found,
        layer_us=fixed * 1e6,
        entry_ns=slope * 1e9,
        cached_ns=max(long - short, 0.0) / cached * 1e9,
    )


def _with_steps(hardware: Hardware, dtype: torch.dtype, device: str) -> Hardware:
    """Adds the overhead of a step outside its forwards, measured with models without layers."""
    small, large = (_llama(_NARROW, 0, dtype, device, vocab_size=size) for size in _VOCABULARIES)
    alone = _step_overhead(small, 1, 0).rest
    blocks = [_step_overhead(model, 1, _GAMMA) for model in (small, large)]
    many = _step_overhead(small, _TEXTS, _GAMMA)
    draw, draw_slope = fixed_and_slope(_VOCABULARIES, [block.draw for block in blocks])
    verify, verify_slope = fixed_and_slope(_VOCABULARIES, [block.rest for block in blocks])
    text = (many.whole - blocks[0].whole) / (_TEXTS - 1) / (_GAMMA + 1)
    return replace(
        hardware,
        step_us=alone * 1e6,
        draw_us=draw * 1e6,
        verify_us=max(0.0, verify - alone) * 1e6,
        text_us=max(0.0, text) * 1e6,
        draw_ns=draw_slope * 1e9,
        verify_ns=verify_slope / (_GAMMA + 1) * 1e9,
    )


@dataclass(frozen=True, slots=True)
class _StepOverhead:
    """Seconds of a step outside its forwards: per draft token, and for the rest of it."""

    gamma: int
    draw: float
    rest: float

    @property
    def whole(self) -> float:
        return self.gamma * self.draw + self.rest


def _step_overhead(model: LlamaForCausalLM, texts: int, gamma: int) -> _StepOverhead:
    """Measures a model that drafts for itself; with `gamma` 0, the model alone."""
    rule = EASD() if gamma else TargetOnly()
    settings = Settings(
        rule=rule, coupling="maximal", gamma=gamma or 1, max_new_tokens=400, batch_size=texts
    )
    pair = Pair.of(model, model if gamma else None)
    requests = make_requests(pair, [[1] * 8] * texts, settings)
    steps = [record.seconds for record in decode(pair, requests, settings)]
    whole = undisturbed([sum(seconds.values()) for seconds in steps])
    drafting = undisturbed([seconds["draft"] for seconds in steps]) if gamma else 0.0
    drawn = drafting / gamma - _forward_seconds(model, texts, 1, 1) if gamma else 0.0
    rest = whole - drafting - _forward_seconds(model, texts, gamma + 1, 1)
    return _StepOverhead(gamma, drawn, rest)


def _llama(
    hidden: int, layers: int, dtype: torch.dtype, device: str, vocab_size: int = 64
) -> LlamaForCausalLM:
    heads = max(1, hidden // 64)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        max_position_embeddings=1 << 16,
    )
    model = LlamaForCausalLM(config).eval()
    return model.to(device=device, dtype=dtype)  # pyright: ignore[reportCallIssue]


def _forward_seconds(model: LlamaForCausalLM, texts: int, tokens: int, context: int) -> float:
    slots = SlotModel(model, texts)
    slots.prefill(0, [[1] * context] * texts)
    ids = torch.ones(texts, tokens, dtype=torch.long, device=model.device)
    return seconds_of(lambda: slots.forward(ids))


def memory_gb(device: str) -> float:
    """Returns the memory of a device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
