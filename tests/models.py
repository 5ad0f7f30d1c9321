"""Tiny random models, built from their configs, and short cuts to the engine over them."""

import os
from dataclasses import replace
from functools import cache

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from easd.core.noise import Noise, race, request_key
from easd.engine.generate import decode
from easd.engine.pair import Pair
from easd.engine.processing import Processing
from easd.engine.request import Request, Row
from easd.engine.settings import Settings

DEVICE = os.environ.get("EASD_TEST_DEVICE", "cpu")


def build(
    config: PretrainedConfig,
    *,
    seed: int = 0,
    spread: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> PreTrainedModel:
    """A random model; `spread` multiplies its matrices, so that texts depend on their prefix."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(torch.float64)
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim > 1:
                values *= spread
    model.generation_config.eos_token_id = None
    return model.to(DEVICE, dtype).eval()


def near(model: PreTrainedModel, *, noise: float = 0.3, seed: int = 1) -> PreTrainedModel:
    """A draft: the model itself with noise on every weight, relative to the weights' spread."""
    draft = type(model)(model.config).to(model.dtype)
    draft.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in draft.parameters():
            if values.ndim > 1:
                drawn = torch.randn(values.shape, generator=generator, dtype=torch.float64)
                values += (noise * values.std() * drawn).to(values.dtype)
    draft.generation_config.eos_token_id = None
    return draft.to(DEVICE).eval()


def llama_config(vocab_size: int = 24, **changes: object) -> LlamaConfig:
    """Two layers with grouped heads."""
    return LlamaConfig(
        **{
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **changes,
        }
    )


def gpt2_config(vocab_size: int = 6) -> GPT2Config:
    """One layer, learned positions."""
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )


def fresh_pair() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A float64 pair to be changed; the draft has two thirds of its tokens accepted."""
    target = build(llama_config(), spread=16.0)
    return target, near(target, noise=0.1)


llama_pair = cache(fresh_pair)


@cache
def sliding(name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A pair of a family whose layers, some or all, look back six tokens."""
    common = {
        "vocab_size": 24,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 6,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = {
        "mistral": lambda: MistralConfig(num_hidden_layers=2, **common),
        "gemma3": lambda: Gemma3TextConfig(num_hidden_layers=3, layer_types=kinds, **common),
        "gemma3-all-sliding": lambda: Gemma3TextConfig(
            num_hidden_layers=2, layer_types=["sliding_attention"] * 2, **common
        ),
        "qwen2": lambda: Qwen2Config(
            num_hidden_layers=3, layer_types=kinds, use_sliding_window=True, **common
        ),
        "qwen2-window-unused": lambda: Qwen2Config(num_hidden_layers=2, **common),
    }[name]()
    target = build(config, spread=12.0)
    return target, near(target, noise=0.2)


def prompts(count: int, *, vocab_size: int = 24, longest: int = 12, seed: int = 0):
    """`count` prompts of very different lengths, the first of one token."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [1, *torch.randint(1, longest + 1, (count - 1,), generator=generator).tolist()]
    return [
        tuple(torch.randint(3, vocab_size, (length,), generator=generator).tolist())
        for length in lengths
    ]


def requests(texts, **fields) -> list[Request]:
    """A request for each prompt, numbered in order."""
    fields = {"max_new_tokens": 16, **fields}
    return [Request(prompt=text, number=number, **fields) for number, text in enumerate(texts)]


def run(pair, asked: list[Request], **settings) -> dict[int, Row]:
    """Decodes requests to their end; number -> row."""
    settings = {"batch_size": len(asked), **settings}
    done = {}
    for record in decode(Pair.of(*pair), asked, Settings(**settings)):
        done |= {row.request.number: row for row in record.rows if row.finished}
    return done


def texts(pair, asked: list[Request], **settings) -> list[list[int]]:
    """What `run` decodes, in the order of `asked`."""
    done = run(pair, asked, **settings)
    return [done[request.number].new_ids for request in asked]


def spoil(monkeypatch, module, which) -> None:
    """Has those of the requests that a module makes fail by logits that are NaN."""
    make = module.make_requests

    def spoiled(*given, **named):
        nan = Processing((lambda text, scores: scores * float("nan"),))
        return [
            replace(request, processing=nan) if which(request) else request
            for request in make(*given, **named)
        ]

    monkeypatch.setattr(module, "make_requests", spoiled)


def processing(**options) -> Processing:
    """The logits processors of these settings, for a request whose end token is 2."""
    return Settings(**options).processing(0, [2], [])


def uncached(model, request, *, at_once=None):
    """Target-only decoding under shared noise by plain forwards over the whole text."""
    ids = list(request.prompt)
    key = torch.tensor([request_key(request.seed, request.number)])
    while len(ids) < len(request.prompt) + request.max_new_tokens:
        with torch.no_grad():
            given = torch.tensor([ids], device=model.device)
            logits = model(input_ids=given, use_cache=False).logits[:, -1].cpu()
        noise = Noise(keys=key, start=torch.tensor([len(ids)]), shared=True)
        drawn = noise.emit(torch.tensor([0]), logits.shape[-1])
        ids.append(int(race(logits.double().softmax(-1), drawn)))
    return ids[len(request.prompt) :]


@cache
def word_tokenizer(vocab_size: int = 24) -> PreTrainedTokenizerFast:
    """Token n is the word `wn`; 0, 1 and 2 are padding, begin and end."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, vocab_size)}
    model = Tokenizer(WordLevel(words, unk_token="<pad>"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
