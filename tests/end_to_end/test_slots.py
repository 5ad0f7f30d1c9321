"""Slots and caches on tiny random models: windows, masks, growth, and models they refuse."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from models import (
    build,
    gpt2_config,
    llama_config,
    llama_pair,
    near,
    prompts,
    requests,
    run,
    sliding,
    texts,
    uncached,
)
from transformers import (
    BloomConfig,
    FalconMambaConfig,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    Lfm2Config,
    MambaConfig,
    OpenAIGPTConfig,
    PegasusConfig,
    RobertaConfig,
)

from easd.core.rules import EASD, Speculative, TargetOnly
from easd.engine.generate import make_engine, make_requests
from easd.engine.pair import Pair
from easd.engine.settings import Settings
from easd.errors import InputError, ModelError

GATED = EASD(tau_h=1.5, tau_o=0.8)
TEXTS = prompts(12)


def test_long_prompts_are_prefilled_in_chunks():
    generator = torch.Generator().manual_seed(0)
    long = [
        tuple(torch.randint(3, 24, (length,), generator=generator).tolist())
        for length in (513, 40, 1100, 512, 514)
    ]
    asked = requests(long, max_new_tokens=6)
    target, draft = llama_pair()
    batched = texts((target, draft), asked, rule=Speculative(), coupling="shared", batch_size=5)
    assert batched == [uncached(target, request) for request in asked]


@pytest.mark.parametrize(
    "name", ["mistral", "gemma3", "gemma3-all-sliding", "qwen2", "qwen2-window-unused"]
)
def test_sliding_windows_are_exact(name):
    """Scores of every emitted token against one plain forward over the whole text."""
    target, draft = sliding(name)
    asked = requests(prompts(7, longest=20), max_new_tokens=20, keep_scores=True)
    for row in run((target, draft), asked, rule=Speculative(), batch_size=3).values():
        with torch.no_grad():
            given = torch.tensor([row.ids], device=target.device)
            logits = target(input_ids=given, use_cache=False).logits[0]
        plain = logits[len(row.request.prompt) - 1 : -1]
        torch.testing.assert_close(torch.stack(row.scores), plain, atol=1e-9, rtol=0)


def test_a_draft_that_lags_two_tokens_catches_up():
    """After a full acceptance the draft has seen neither its last token nor the bonus token."""
    target, _ = llama_pair()
    asked = requests(TEXTS[:3], max_new_tokens=13)
    fed = []
    engine = make_engine(Pair.of(target, target), Settings(rule=Speculative(), gamma=3), num_rows=3)
    for request in asked:
        engine.submit(request)
    forward = engine.drafter.model.forward

    def watch(tokens, *rest, **named):
        fed.append(tokens.shape[1])
        return forward(tokens, *rest, **named)

    engine.drafter.model.forward = watch
    done = {}
    while engine.busy:
        (record,) = engine.step()
        done |= {row.request.number: row.ids for row in record.rows if row.finished}
    assert 2 in fed
    plain = run((target, None), asked, rule=TargetOnly())
    assert {len(ids) for ids in done.values()} == {len(row.ids) for row in plain.values()}


def test_capacity_grows_in_the_middle_of_a_text():
    pair = llama_pair()
    asked = requests(TEXTS[:3], max_new_tokens=150)
    engine = make_engine(
        Pair.of(*pair), Settings(rule=Speculative(), coupling="shared"), num_rows=3
    )
    for request in asked:
        engine.submit(request)
    capacities, done = set(), {}
    while engine.busy:
        (record,) = engine.step()
        done |= {r.request.number: r.new_ids for r in record.rows if r.finished}
        capacities.add(engine.target.cache.placement.capacity)
    assert capacities == {64, 128, 256}
    plain = texts((pair[0], None), asked, rule=TargetOnly(), coupling="shared", batch_size=1)
    assert [done[number] for number in range(3)] == plain


@pytest.mark.parametrize("rule", [Speculative(), replace(GATED, draft_at_bonus=True)], ids=str)
def test_keys_and_values_are_never_recomputed(rule, monkeypatch):
    """Each token goes through the target once; only refused drafts are forwarded in vain."""
    target, draft = llama_pair()
    fed = {id(target): 0, id(draft): 0}
    hooks = [
        model.register_forward_pre_hook(
            lambda model, _, named: fed.update(
                {id(model): fed[id(model)] + named["input_ids"].numel()}
            ),
            with_kwargs=True,
        )
        for model in (target, draft)
    ]
    try:
        (row,) = run((target, draft), requests(TEXTS[5:6], max_new_tokens=40), rule=rule).values()
    finally:
        for hook in hooks:
            hook.remove()
    counts = row.counts
    prompt = len(row.request.prompt)
    assert fed[id(target)] == prompt - 1 + counts.blocks + counts.proposed
    # The draft: prompt, its own tokens and what it did not draft itself, each at most once.
    assert fed[id(draft)] <= prompt - 1 + counts.proposed + 2 * counts.blocks


def test_no_step_copies_the_cache():
    """Slots stay where they are until the capacity grows, and returned keys are views of them."""
    engine = make_engine(Pair.of(*llama_pair()), Settings(rule=GATED), num_rows=4)
    for request in requests(TEXTS[:4], max_new_tokens=30):
        engine.submit(request)
    engine.step()
    homes = [layer.keys.data_ptr() for layer in engine.target.cache.layers]
    layer = engine.target.cache.layers[0]
    seen = []
    update = layer.update

    def watch(*states, **named):
        keys, values = update(*states, **named)
        seen.append(keys.untyped_storage().data_ptr() == layer.keys.untyped_storage().data_ptr())
        return keys, values

    layer.update = watch
    while engine.busy:
        engine.step()
    assert seen
    assert all(seen)
    assert [layer.keys.data_ptr() for layer in engine.target.cache.layers] == homes


@pytest.mark.parametrize("config", [gpt2_config(24), llama_config()], ids=lambda c: c.model_type)
def test_a_text_may_fill_the_context_window(config):
    config.max_position_embeddings = 32
    target = build(config, spread=12.0)
    pair = target, near(target)
    asked = [
        replace(request, max_new_tokens=32 - len(request.prompt))
        for request in requests(prompts(5, longest=30))
    ]
    spoken = texts(pair, asked, rule=Speculative(), coupling="shared", gamma=5)
    assert spoken == [uncached(target, request) for request in asked]
    with pytest.raises(InputError, match="context window of 32"):
        texts(pair, [replace(asked[0], max_new_tokens=32)], rule=Speculative())


TINY = {"vocab_size": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
REFUSED = {
    "recurrent": MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, **TINY),
    "recurrent too": FalconMambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, **TINY),
    "hybrid": Lfm2Config(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        **TINY,
    ),
    "positions of its own": PegasusConfig(
        d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, **TINY
    ),
    "ALiBi": BloomConfig(hidden_size=16, n_layer=1, n_head=2, **TINY),
    "soft-capped": Gemma2Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        **TINY,
    ),
    "attention sinks": GptOssConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        **TINY,
    ),
    "no cache": OpenAIGPTConfig(n_embd=16, n_layer=1, n_head=2, **TINY),
    "positions after padding": RobertaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=True,
        **TINY,
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_slots_cannot_serve_are_refused(kind):
    model = build(REFUSED[kind], dtype=torch.float32)
    with pytest.raises(ModelError, match="transformers' own generate") as caught:
        texts((model, None), requests(TEXTS[:1]), rule=TargetOnly())
    assert ("keeps no keys and values" in str(caught.value)) == (kind == "no cache")


def test_chunked_attention_is_refused():
    from transformers import Llama4TextConfig

    config = Llama4TextConfig(
        hidden_size=16,
        intermediate_size=16,
        intermediate_size_mlp=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=1,
        layer_types=["chunked_attention", "full_attention"],
        **TINY,
    )
    model = build(config, dtype=torch.float32)
    with pytest.raises(ModelError, match="chunked_attention"):
        texts((model, None), requests(TEXTS[:1]), rule=TargetOnly())


def test_encoder_decoders_are_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, **TINY
    )
    with pytest.raises(ModelError, match="encoder-decoder"):
        texts((T5ForConditionalGeneration(config), None), requests(TEXTS[:1]), rule=TargetOnly())


def test_dropout_of_the_config_is_not_the_engines_business():
    config = GPT2Config(vocab_size=24, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = build(config, spread=4.0)
    asked = requests(TEXTS[:2])
    spoken = texts((model, model), asked, rule=Speculative(), coupling="shared")
    assert spoken == [uncached(model, request) for request in asked]


def test_an_engine_out_of_use_frees_its_slots_at_once():
    target = build(gpt2_config())
    settings = Settings(rule=TargetOnly(), max_new_tokens=3)
    engine = make_engine(Pair.of(target), settings, num_rows=2)
    for request in make_requests(Pair.of(target), [[1, 2], [3]], settings):
        engine.submit(request)
    while engine.busy:
        engine.step()
    slots = weakref.ref(engine.target.cache)
    gc.disable()  # Reference counts alone must do, or a long run waits for the collector.
    try:
        del engine
        assert slots() is None
    finally:
        gc.enable()
