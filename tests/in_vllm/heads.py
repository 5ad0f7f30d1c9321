"""Tiny targets with draft heads of the kinds that vLLM serves; their weights are random."""

import json

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

VOCAB, HIDDEN, INNER, DRAFT_VOCAB = 109, 64, 128, 60
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def make(method, folder):
    """The target's folder, and what vLLM's `speculative_config` says of its head."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 0.1

    if method == "mtp":
        return _with_mtp(folder, random), {"method": "mtp", "num_speculative_tokens": 1}
    config = LlamaConfig(**SIZES, head_dim=HIDDEN // 2, num_hidden_layers=4)
    _save(LlamaForCausalLM(config), folder / "target")
    head, fields = (_eagle if method == "eagle" else _eagle3)(random)
    (folder / "head").mkdir()
    values = {**config.to_dict(), "num_hidden_layers": 1, **fields}
    (folder / "head" / "config.json").write_text(json.dumps(values))
    save_file(head, folder / "head" / "model.safetensors")
    speculation = {"method": method, "model": str(folder / "head"), "num_speculative_tokens": 3}
    return folder / "target", speculation


def _save(model, folder):
    """With sharper distributions than those of fresh weights."""
    with torch.no_grad():
        model.lm_head.weight.mul_(15)
        model.model.embed_tokens.weight.mul_(20)
    model.save_pretrained(folder)


def _layer(random, attended=HIDDEN):
    return {
        **{f"self_attn.{name}_proj.weight": random(HIDDEN, attended) for name in "qkv"},
        "self_attn.o_proj.weight": random(HIDDEN, HIDDEN),
        "mlp.gate_proj.weight": random(INNER, HIDDEN),
        "mlp.up_proj.weight": random(INNER, HIDDEN),
        "mlp.down_proj.weight": random(HIDDEN, INNER),
        "post_attention_layernorm.weight": torch.ones(HIDDEN),
    }


def _eagle(random):
    """Reads the target's last hidden state, and has its head."""
    layer = {f"layers.0.{name}": value for name, value in _layer(random).items()}
    mixing = torch.cat([random(HIDDEN, HIDDEN), torch.eye(HIDDEN)], 1)
    return {**layer, "fc.weight": mixing}, {"architectures": ["LlamaForCausalLM"]}


def _eagle3(random):
    """Reads three hidden states, and knows some of the target's tokens."""
    layer = {f"midlayer.{name}": value for name, value in _layer(random, 2 * HIDDEN).items()}
    known = torch.arange(DRAFT_VOCAB) + torch.arange(DRAFT_VOCAB) // 2
    head = {
        **layer,
        "midlayer.input_layernorm.weight": torch.ones(HIDDEN),
        "midlayer.hidden_norm.weight": torch.ones(HIDDEN),
        "fc.weight": random(HIDDEN, 3 * HIDDEN),
        "norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": random(DRAFT_VOCAB, HIDDEN) * 10,
        "d2t": known - torch.arange(DRAFT_VOCAB),
        "t2d": torch.isin(torch.arange(VOCAB), known),
    }
    fields = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": DRAFT_VOCAB,
        "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
    }
    return head, fields


def _with_mtp(folder, random):
    """A target whose own checkpoint brings a layer that predicts one token more."""
    target = folder / "target"
    _save(Qwen2ForCausalLM(Qwen2Config(**SIZES, num_hidden_layers=2)), target)
    layer = {
        **_layer(random),
        **{f"self_attn.{name}_proj.bias": torch.zeros(HIDDEN) for name in "qkv"},
        **{
            f"{name}.weight": torch.ones(HIDDEN)
            for name in ("input_layernorm", "token_layernorm", "hidden_layernorm")
        },
        "final_layernorm.weight": torch.ones(HIDDEN),
        "input_proj.weight": torch.cat([torch.eye(HIDDEN), random(HIDDEN, HIDDEN)], 1),
    }
    weights = load_file(target / "model.safetensors")
    weights |= {f"model.mtp_layers.0.{name}": value for name, value in layer.items()}
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    values = json.loads((target / "config.json").read_text())
    values |= {"architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}
    (target / "config.json").write_text(json.dumps(values))
    return target
