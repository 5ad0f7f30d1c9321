"""The kernels of a layer against the torch functions that they stand for, and in whole models."""

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from easd.engine.models import fused
from easd.engine.models.cache import SlotCache
from easd.engine.models.slots import SlotModel

SMALL = {
    "vocab_size": 24,
    "hidden_size": 48,  # Not a power of two.
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
}
CONFIGS = {
    "llama": LlamaConfig,
    "llama, biases": lambda **of: LlamaConfig(**of, attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def rows(request, device):
    return torch.randn(3, 2, 1100, dtype=request.param, device=device)


def test_sum_and_norm(rows):
    added, weight = torch.randn_like(rows), torch.randn_like(rows[0, 0])
    total, normed = fused.add_norm(rows, added, weight, 1e-5)
    assert_close(total, rows + added)  # The interpreter cuts bfloat16 where a GPU rounds.
    exact = torch.nn.functional.rms_norm(total.double(), weight.shape, weight.double(), 1e-5)
    assert_close(normed, exact.to(rows.dtype))


def test_gate(rows):
    values = torch.randn_like(rows)
    exact = torch.nn.functional.silu(rows.double()) * values.double()
    assert_close(fused.gate_(rows, values), exact.to(rows.dtype))


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_of_the_models_own_forward(kind, device, monkeypatch):
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](**SMALL)).eval().to(device)
    for values in model.parameters():
        values.data.uniform_(-0.5, 0.5)
    texts = torch.randint(24, (3, 12), device=device)
    lengths = [5, 9, 7]
    calls = []
    monkeypatch.setattr(fused, "usable", lambda rows: not calls.append(rows.shape))
    with torch.inference_mode():
        own = model(texts).logits
        held = SlotModel(model, 3)
        held.prefill(0, [text[:n].tolist() for text, n in zip(texts, lengths, strict=True)])
        for length in (2, 1):
            some = [text[n : n + length] for text, n in zip(texts, held.lengths, strict=True)]
            logits = held.forward(torch.stack(some))
            for row, n in enumerate(held.lengths):
                assert_close(logits[row], own[row, n : n + length], atol=1e-5, rtol=1e-4)
            held.lengths = [n + length for n in held.lengths]
    assert calls


def test_keys_and_values_go_to_their_slots(device):
    """Nothing else in the cache changes."""
    batch, length, heads, size = 2, 3, 2, 8
    cache = SlotCache(4)
    cache.place_anywhere(torch.tensor([5, 0], device=device), length)
    key, value = torch.randn(2, batch, length, heads * size, device=device)
    keys, values = cache.slots(0, value.view(batch, length, heads, size))
    keys.fill_(7)
    values.fill_(7)
    still = torch.ones(batch, length, size, device=device)  # cos 1 and sin 0 turn nothing
    at = cache.placement.positions
    query = torch.randn(batch, length, 4 * size, device=device)
    turned = fused.turn(query, key, value, None, still, 0 * still, at, keys, values)
    assert torch.equal(turned, query.view(batch, length, 4, size).transpose(1, 2))
    for held, given in ((keys, key), (values, value)):
        wanted = torch.full_like(held, 7)
        for row, begin in enumerate((5, 0)):
            places = given[row].view(length, heads, size).transpose(0, 1)
            wanted[row, :, begin : begin + length] = places
        assert torch.equal(held, wanted)
