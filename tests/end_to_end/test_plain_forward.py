"""The plain forward of models of Llama's shape: the logits of their own forward, or left alone."""

from functools import cache

import pytest
import torch
from models import DEVICE, build, llama_config, prompts
from torch import nn
from torch.nn.utils import prune
from transformers import Qwen2Config, Qwen3Config

from easd.engine.models import llama, packing, slots
from easd.engine.models.int8 import quantise_linears
from easd.engine.models.slots import SlotModel

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="plain on a CPU only")

SMALL = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
LARGE = {"hidden_size": 256, "intermediate_size": 512}  # Large enough to be packed.
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "llama": lambda: llama_config(),
    "every head its own keys": lambda: llama_config(num_key_value_heads=4),
    "biases": lambda: llama_config(attention_bias=True, mlp_bias=True),
    "tied, and scaled positions": lambda: llama_config(
        tie_word_embeddings=True, rope_parameters=SCALED
    ),
    "qwen2": lambda: Qwen2Config(**SMALL),
    "qwen3": lambda: Qwen3Config(**SMALL),
}
TEXTS = [text[:12] for text in prompts(3, longest=20)]


@cache
def model(name, dtype=torch.float64):
    return build(CONFIGS[name](), spread=8.0, dtype=dtype)


def forwards(model, *, plain=True, between=lambda: None):
    """Logits after prompts of different lengths, then of four more tokens of each, then of one."""
    real = slots.plain_layers
    if not plain:
        slots.plain_layers = lambda model: None
    try:
        with torch.inference_mode():
            found, held = [], SlotModel(model, 3)
            held.prefill(0, TEXTS)
            for length, keep in ((4, None), (3, 2), (1, 1)):
                tokens = torch.arange(3 * length).view(3, length) % 21 + 3
                found.append(held.forward(tokens, keep=keep))
                held.lengths = [count + length for count in held.lengths]
                between()
        return found
    finally:
        slots.plain_layers = real


def is_plain(model):
    with torch.inference_mode():
        return llama.plain_layers(model) is not None


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_models_own_forward(name):
    assert is_plain(model(name))
    for ours, theirs in zip(forwards(model(name)), forwards(model(name), plain=False), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_rounding_is_no_coarser_than_that_of_the_models_own_forward(name, dtype):
    exact = forwards(model(name))
    rounded = [
        torch.stack([(a - b).abs().mean() for a, b in zip(found, exact, strict=True)]).mean()
        for found in (forwards(model(name, dtype), plain=plain) for plain in (True, False))
    ]
    assert rounded[0] <= 1.5 * rounded[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_changed_between_forwards_are_computed_with(dtype):
    found = []
    for plain in (True, False):
        fresh = build(llama_config(**LARGE), dtype=dtype)

        def change(fresh=fresh):
            for values in fresh.parameters():
                values.data.mul_(0.9)

        found.append(forwards(fresh, plain=plain, between=change))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_rows_of_zeros_beside_few_tokens_change_nothing(monkeypatch, name, length, rows):
    configs = {
        "llama": llama_config(attention_bias=True, mlp_bias=True, **LARGE),
        "qwen3": Qwen3Config(**SMALL | LARGE),
    }
    monkeypatch.setattr(packing, "_AVX2", False)
    large = build(configs[name], dtype=torch.float32)
    tokens = torch.arange(rows * length).view(rows, length) % 21 + 3

    def logits():
        with torch.inference_mode():
            held = SlotModel(large, rows)
            held.prefill(0, TEXTS[:rows])
            return [held.forward(tokens), held.forward(tokens, keep=1)]

    ours = logits()
    monkeypatch.setattr(slots, "plain_layers", lambda model: None)
    for found, theirs in zip(ours, logits(), strict=True):
        assert found.shape == theirs.shape
        torch.testing.assert_close(found, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_prompts_of_different_lengths_are_cached_as_alone(name):
    texts = [[5] * 24, [7, 3, 9], [], list(range(3, 12))]
    next_tokens = torch.full((len(texts), 1), 4)
    with torch.inference_mode():
        together, alone = SlotModel(model(name), 4), SlotModel(model(name), 4)
        together.prefill(0, texts)
        for row, text in enumerate(texts):
            alone.prefill(row, [text or [0]])
        alone.lengths = list(together.lengths)
        torch.testing.assert_close(
            together.forward(next_tokens), alone.forward(next_tokens), atol=1e-9, rtol=0
        )


def test_padding_is_not_multiplied(monkeypatch):
    called = []
    monkeypatch.setattr(llama, "_gated", lambda gate, values: called.append(gate.shape) or gate)
    with torch.inference_mode():
        held = SlotModel(model("llama"), 3)
        for texts, rows in (
            ([[5] * 24, [7] * 3, []], (1, 24 + 3 + 1)),
            ([[5] * 24, [7] * 20, [9] * 16], (3, 24)),  # little padding
        ):
            called.clear()
            held.prefill(0, texts)
            assert {shape[:2] for shape in called} == {rows}


def test_what_one_prompt_holds_never_reaches_another():
    """Not even through padding, whose values are multiplied by zero: NaN times zero is NaN."""
    spoilt = build(llama_config(), spread=8.0)
    with torch.inference_mode():
        spoilt.model.embed_tokens.weight[20] = torch.nan
        held = SlotModel(spoilt, 3)
        held.prefill(0, [[20] * 5, [], [5, 6, 7, 3, 4, 8, 9, 4] * 3])
        held.lengths = [5, 1, 24]
        after = held.forward(torch.full((3, 4), 4))
    assert after[0].isnan().all()
    assert after[1:].isfinite().all()


@pytest.mark.parametrize("avx2", [False, True])
def test_rows_of_zeros_join_one_or_two_tokens_with_avx512(monkeypatch, avx2):
    monkeypatch.setattr(packing, "_AVX2", avx2)
    large, called = build(llama_config(**LARGE), dtype=torch.float32), []
    monkeypatch.setattr(llama, "_gated", lambda gate, values: called.append(len(gate[0])) or gate)
    with torch.inference_mode():
        held = SlotModel(large, 1)
        for length in (1, 2, 3, 4):
            held.forward(torch.ones(1, length, dtype=torch.long))
    assert called[::2] == ([1, 2, 3, 4] if avx2 else [5, 5, 3, 4])


def test_an_int8_draft_is_plain():
    draft = build(llama_config(**LARGE), dtype=torch.float32)
    quantise_linears(draft, spared=nn.Linear(1, 1))
    assert is_plain(draft)
    for ours, theirs in zip(forwards(draft), forwards(draft, plain=False), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-2)


class Subclass(nn.Linear):
    pass


def sets_forward(layer):
    layer.mlp.down_proj.forward = lambda given: 0 * given[..., :32]


def replaces_a_layer(layer):
    layer.self_attn.q_proj = Subclass(32, 32, bias=False).double().eval()
    nn.init.eye_(layer.self_attn.q_proj.weight)


CHANGES = {
    "a forward of someone's": sets_forward,
    "a hook": lambda layer: layer.register_forward_hook(lambda part, given, out: 0 * out),
    "a hook before": lambda layer: layer.mlp.act_fn.register_forward_pre_hook(lambda *args: None),
    "a pruner": lambda layer: prune.l1_unstructured(layer.self_attn.k_proj, "weight", 0.5),
    "another class": replaces_a_layer,
    "another activation": lambda layer: setattr(layer.mlp, "act_fn", nn.GELU()),
    "training mode": lambda layer: layer.train(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_models_that_someone_has_changed_compute_themselves(change):
    """The change comes between two forwards of one batch, as of a user who traces a layer."""
    found = []
    for plain in (True, False):
        fresh = build(llama_config(), spread=8.0)
        alter = [CHANGES[change]]

        def once(fresh=fresh, alter=alter):
            if alter:
                alter.pop()(fresh.model.layers[1])

        found.append(forwards(fresh, plain=plain, between=once))
        assert not is_plain(fresh)
    torch.testing.assert_close(found[0], found[1], atol=1e-9, rtol=0)


def test_a_changed_class_autocast_and_gradients_are_left_to_the_model(monkeypatch):
    fresh = model("llama")
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_plain(fresh)
    assert llama.plain_layers(fresh) is None  # gradients are recorded here
    assert not is_plain(type("Mine", (type(fresh),), {})(llama_config()).eval())
    monkeypatch.setattr(type(fresh.model.layers[0].mlp), "forward", lambda self, x: x)
    assert not is_plain(fresh)
