"""Int8 weights of a draft: what they compute, whom they leave alone, and what stays true."""

import pytest
import torch
from torch import nn

from easd import Speculative, generate, load_pair
from easd.core.rules import TargetOnly
from easd.engine.models.int8 import Int8Linear, quantise_linears
from easd.engine.models.packing import PackedLinears
from easd.errors import ModelError
from easd.speed.plan import Shape


@pytest.fixture(scope="module")
def pair():
    return load_pair("smollm2", int8_draft=True, device="cpu")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 32, 33, 200])
def test_products_are_those_of_the_rounded_weights(rows, bias):
    torch.manual_seed(rows)
    layer = nn.Linear(320, 256, bias=bias)
    found = Int8Linear(layer)
    widened = found.weight.double() * found.scales.double()[:, None]
    vectors = torch.randn(rows, 2, 320).bfloat16().float()
    expected = nn.functional.linear(vectors.double(), widened)
    expected = expected if layer.bias is None else expected + layer.bias.double()
    # bfloat16 keeps eight bits of an answer.
    assert (found(vectors) - expected).abs().max() < expected.abs().max() * 2**-7
    assert (widened - layer.weight).abs().max() <= layer.weight.abs().max() / 127


def test_a_row_does_not_know_its_batch_mates():
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(576, 1536, bias=False))
    rows = torch.randn(24, 576)
    alone = torch.cat([layer(row[None]) for row in rows])
    assert torch.equal(layer(rows), alone)
    many = layer(torch.cat([rows] * 2))[:24]  # More rows go another way, to the same rounding.
    assert (many == alone).float().mean() > 0.99
    torch.testing.assert_close(many, alone, rtol=2**-7, atol=1e-3)
    loud = torch.cat([rows[:1], 1000 * rows[1:]])
    assert torch.equal(layer(loud)[0], alone[0])


def test_a_matrix_of_zeros_stays_one():
    layer = nn.Linear(320, 256, bias=False)
    nn.init.zeros_(layer.weight)
    assert not Int8Linear(layer)(torch.randn(2, 320)).any()


def test_the_draft_is_rounded_and_the_target_is_not(pair):
    plain = load_pair("smollm2", device="cpu")
    for ours, theirs in zip(pair.target.parameters(), plain.target.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    rounded = [m for m in pair.draft.modules() if isinstance(m, Int8Linear)]
    assert len(rounded) == 4 * 7 + 1
    assert not any(isinstance(m, Int8Linear) for m in pair.target.modules())
    assert not PackedLinears(pair.draft)._layers
    assert Shape.of(pair.draft, "int8").products == Shape.of(plain.draft, "plain").products
    ids = torch.arange(1000, 1040)[None]
    with torch.inference_mode():
        probs = [model.draft(ids).logits.softmax(-1) for model in (pair, plain)]
    assert 0 < (probs[0] - probs[1]).abs().sum(-1).mean() / 2 < 0.1


def test_speculation_with_it_writes_what_the_target_writes(pair):
    prompts = ["Once upon a time", "The sum of two numbers"]
    options = {"tokenizer": pair.tokenizer, "coupling": "shared", "max_new_tokens": 24}
    alone = generate(pair.target, None, prompts, rule=TargetOnly(), **options)
    ours = generate(pair.target, pair.draft, prompts, rule=Speculative(), **options)
    assert [text.token_ids for text in ours] == [text.token_ids for text in alone]
    assert sum(text.counts.accepted for text in ours)


def test_a_layer_of_both_models_is_refused(pair):
    shared = nn.Linear(320, 256)
    target = nn.Sequential(shared)
    with pytest.raises(ModelError, match=r"draft and target share the layer '0'.*int8_draft"):
        quantise_linears(nn.Sequential(shared), spared=target)
    assert type(target[0]) is nn.Linear


def test_layers_that_are_small_or_odd_stay_as_they_are():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(300, 256), nn.Linear(320, 256))
    quantise_linears(model, spared=nn.Linear(1, 1))
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear, Int8Linear]


def test_elsewhere_than_on_a_cpu_it_is_refused():
    with pytest.raises(ModelError, match="on meta would not make it faster"):
        quantise_linears(nn.Linear(320, 256, device="meta"), spared=nn.Linear(1, 1))


def test_a_draft_that_would_stay_as_it_is_is_refused():
    with pytest.raises(ModelError, match="no linear layer that is large enough"):
        load_pair("lab-a", int8_draft=True, device="cpu")
