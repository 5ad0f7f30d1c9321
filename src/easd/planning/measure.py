"""The machine at hand as `Hardware`: measured by products, copies and a model of no size."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import Timer
from transformers import LlamaConfig, LlamaForCausalLM

from easd.core.noise import Noise, race, request_key
from easd.core.rules import EASD, TargetOnly
from easd.core.types import Step
from easd.core.verify import verify
from easd.engine.generate import decode, make_requests
from easd.engine.packing import PackedLinears
from easd.engine.settings import Settings
from easd.engine.slots import SlotModel
from easd.planning.hardware import Hardware

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_WIDTH = 1024
_MATRICES = 48  # 200 MB of float32: far more than any cache keeps.
_FEW, _MANY = 2, 10  # layers
_ENTRIES = 65_536  # of a vocabulary
_GAMMA = 4


@torch.inference_mode()
def measure_here(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Hardware:
    """Times this machine; a minute. Threads are those that torch uses now."""
    matrices = nn.Sequential(
        *(
            nn.Linear(_WIDTH, _WIDTH, bias=False, dtype=dtype, device=device)
            for _ in range(_MATRICES)
        )
    )
    entries = _MATRICES * _WIDTH**2
    products = []
    with PackedLinears(matrices):
        for rows in _ROWS:
            vectors = torch.randn(rows, 1, _WIDTH, dtype=dtype, device=device)
            products.append((float(rows), entries / _seconds(lambda v=vectors: matrices(v))))
    few, many = (_tiny(layers, dtype, device) for layers in (_FEW, _MANY))
    layer = (_forward_seconds(many) - _forward_seconds(few)) / (_MANY - _FEW)
    memory = torch.randn(_MATRICES * _WIDTH**2, device=device)
    return Hardware(
        name="this machine",
        memory_gb=_memory_gb(device),
        bandwidth_gbs=memory.nbytes / _seconds(memory.sum) / 1e9,
        bandwidth_share=1.0,
        tflops=max(rows * speed for rows, speed in products) * 2 / 1e12,
        flops_share=1.0,
        layer_us=max(layer, 0.0) * 1e6,
        step_us=max(_step_seconds(few) - _FEW * layer, 0.0) * 1e6,
        draw_ns=_draw_seconds(device) / _ENTRIES * 1e9,
        verify_ns=_verify_seconds(device) / _ENTRIES / (_GAMMA + 1) * 1e9,
        products=tuple(products),
    )


def _seconds(call: Callable[[], Any]) -> float:
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=0.3).median


def _tiny(layers: int, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """A model with nothing to read or to compute."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=1,
        max_position_embeddings=1 << 20,
    )
    model = LlamaForCausalLM(config).eval()
    return model.to(device=device, dtype=dtype)  # pyright: ignore[reportCallIssue]


def _forward_seconds(model: LlamaForCausalLM) -> float:
    slots = SlotModel(model, 1)
    slots.prefill(0, [[1] * 8])
    token = torch.ones(1, 1, dtype=torch.long, device=model.device)
    return _seconds(lambda: slots.forward(token))


def _step_seconds(model: LlamaForCausalLM) -> float:
    """A step of the engine without drafting."""
    settings = Settings(rule=TargetOnly(), max_new_tokens=400)
    steps = decode(model, None, make_requests([model], [[1] * 8], settings, None), settings)
    return statistics.median(sum(record.seconds.values()) for record in steps)


def _draw_seconds(device: str) -> float:
    """A draft token from its logits."""
    noise = _noise(device)
    logits = torch.randn(1, _ENTRIES, device=device)
    at = torch.zeros(1, dtype=torch.long, device=device)
    return _seconds(lambda: race(logits.softmax(-1), noise.draft(at, _ENTRIES)))


def _verify_seconds(device: str) -> float:
    """A block from its logits, by an entropy-aware rule."""
    noise = _noise(device)
    logits = 3 * torch.randn(1, _GAMMA + 1, _ENTRIES, device=device)
    draft_probs = (logits + torch.randn_like(logits)).softmax(-1)
    step = Step(
        draft_tokens=draft_probs[:, :_GAMMA].argmax(-1),
        num_draft_tokens=torch.full((1,), _GAMMA, device=device),
        draft_probs=draft_probs,
        target_probs=logits.softmax(-1),
    )
    rule = EASD(coupling="maximal")

    def verified() -> object:
        return verify(rule, replace(step, target_probs=logits.softmax(-1)), noise)

    return _seconds(verified)


def _noise(device: str) -> Noise:
    keys = torch.tensor([request_key(0, 0)], device=device)
    return Noise(keys=keys, start=torch.zeros(1, dtype=torch.long, device=device))


def _memory_gb(device: str) -> float:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def describe(hardware: Hardware) -> str:
    """What was measured, in a line."""
    assert hardware.products is not None
    one, many = hardware.products[0][1], hardware.products[-1]
    return (
        f"{hardware.bandwidth_gbs:.1f} GB/s, {one / 1e9:.2f} G weights/s for one text, "
        f"{2 * many[0] * many[1] / 1e9:.0f} GFLOP/s for {many[0]:.0f}, "
        f"{hardware.layer_us:.0f} us a layer, {hardware.step_us:.0f} us a step"
    )
