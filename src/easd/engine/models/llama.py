"""A forward for Llama-like models: the same arithmetic in fewer calls.

For a small batch, a forward of transformers spends much of its time on calls between matrix
products. Here a layer is one function: it calls the products directly, rotates queries and keys
together, a norm takes half the operations, and on a CPU padding is not computed. Before every
forward, the model is checked for hooks, adapters and other layers; a model with any runs its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu
from torch.nn.modules import module as torch_module
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from easd.engine.models import fused
from easd.engine.models.attention import Attention
from easd.engine.models.cache import SlotCache
from easd.engine.models.int8 import Int8Linear
from easd.engine.models.layout import Layout
from easd.engine.models.packing import is_packed

_PARTS = ("ForCausalLM", "Model", "DecoderLayer", "Attention", "MLP", "RMSNorm")
# The classes of each family's modules, by the class of the model.
_FAMILIES = {
    getattr(modeling, f"{prefix}ForCausalLM"): {
        part: getattr(modeling, prefix + part) for part in _PARTS
    }
    for modeling, prefix in (
        (modeling_llama, "Llama"),
        (modeling_qwen2, "Qwen2"),
        (modeling_qwen3, "Qwen3"),
    )
}
_STATIC_ROPES = ("default", "linear", "llama3", "yarn")
_LINEAR = (nn.Linear, Int8Linear)
_NORMS = ("input_layernorm", "post_attention_layernorm")
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


class _Layer(NamedTuple):
    attention: Any
    mlp: Any
    before_attention: Any
    before_mlp: Any


def plain_layers(model: PreTrainedModel) -> list[_Layer] | None:
    """The layers for `plain_forward`, or None if the model must run its own forward."""
    family = _FAMILIES.get(type(model))
    if (
        family is None
        or torch.is_grad_enabled()
        or torch_module._has_any_global_hook()
        or any(cls.forward.__module__ != cls.__module__ for cls in family.values())
    ):
        return None
    inner: Any = model._modules["model"]
    kind = inner.embed_tokens.weight.device.type
    if kind not in ("cpu", "cuda") or torch.is_autocast_enabled(kind):
        return None
    if not (_is_plain(model, family["ForCausalLM"]) and _is_plain(inner, family["Model"])):
        return None
    layers = []
    for layer in inner.layers[: inner.config.num_hidden_layers]:
        if not all(_is_plain(*part) for part in _parts(layer, family)):
            return None
        layers.append(_Layer(layer.self_attn, layer.mlp, *(layer._modules[n] for n in _NORMS)))
    return layers


def reads_nothing(model: PreTrainedModel) -> bool:
    """Whether a model runs `plain_forward` and nothing in it reads a number from a tensor.

    Positions that are scaled by the length of the text read it.
    """
    if plain_layers(model) is None:
        return False
    inner: Any = model._modules["model"]
    return getattr(inner.rotary_emb, "rope_type", None) in _STATIC_ROPES


def _parts(layer: Any, family: dict[str, type]) -> Iterator[tuple[Any, type | tuple[type, ...]]]:
    """Every module of a layer with its expected class."""
    yield layer, family["DecoderLayer"]
    inside = layer._modules
    attention, mlp = inside.get("self_attn"), inside.get("mlp")
    yield attention, family["Attention"]
    yield mlp, family["MLP"]
    for name in _NORMS:
        yield inside.get(name), family["RMSNorm"]
    for name in _ATTENTION:
        yield attention._modules.get(name), _LINEAR
    for name in _MLP:
        yield mlp._modules.get(name), _LINEAR
    yield mlp._modules.get("act_fn"), (SiLUActivation, nn.SiLU)
    if "q_norm" in attention._modules:
        yield attention._modules["q_norm"], family["RMSNorm"]
        yield attention._modules["k_norm"], family["RMSNorm"]


def _is_plain(part: Any, kinds: type | tuple[type, ...]) -> bool:
    """Whether a module computes exactly what its class defines."""
    return (
        (type(part) is kinds or (isinstance(kinds, tuple) and type(part) in kinds))
        and not part.training
        and not part._forward_hooks
        and not part._forward_pre_hooks
        and ("forward" not in part.__dict__ or is_packed(part))
    )


def plain_forward(
    model: Any,
    layers: list[_Layer],
    tokens: Tensor,
    positions: Tensor,
    mask: Tensor,
    cache: SlotCache,
    keep: int,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """Logits [B, keep, V] of the last `keep` of `tokens` [B, T].

    Args:
        layers: the model's, by `plain_layers`.
        positions: [B, T].
        mask: added to the scores of all layers, [B, 1, T, S].
        cache: receives keys and values.
        lengths: the number of tokens of each text before padding, [B]; all unless given.
    """
    rows = model.model.embed_tokens(tokens)
    cos, sin = model.model.rotary_emb(rows, positions)
    groups = layers[0].attention.num_key_value_groups if layers else 1
    turn = _fused_turn(cos, sin, cache) if fused.usable(rows) else _turn(cos, sin, cache)
    packed = bool(layers) and is_packed(layers[0].mlp.up_proj)
    if tokens.is_cuda:  # One kernel over padding takes less time there than many without.
        lengths = None
    layout = Layout(tokens.shape, lengths, packed=packed)
    attend = Attention(mask, groups, layout.lengths)
    rows, added = layout.of_products(rows), None
    for layer in layers:
        rows, given = _added(rows, added, layer.before_attention)
        attention, mlp = layer.attention, layer.mlp
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        turned = turn(attention, *(layout.of_texts(each.forward(given)) for each in projections))
        attended = attend(*turned, attention.scaling)
        if layout.lengths is None:
            attended = layout.of_products(attended)
        rows, given = _added(rows, attention.o_proj.forward(attended), layer.before_mlp)
        gated = _gated(mlp.gate_proj.forward(given), mlp.up_proj.forward(given))
        added = mlp.down_proj.forward(gated)
    rows = rows if added is None else added.add_(rows)
    rows = model.model.norm(layout.of_texts(rows)[:, -keep:])
    layout = Layout(rows.shape[:2], None, packed=is_packed(model.lm_head))
    return layout.of_texts(model.lm_head(layout.of_products(rows)))


_Turn = Callable[[Any, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""From a layer's attention and its projections [B, T, heads * D] to queries [B, H, T, D], rotated,
and all keys and values so far, [B, heads, S, D]."""


def _turn(cos: Tensor, sin: Tensor, cache: SlotCache) -> _Turn:
    half = sin.shape[-1] // 2
    signed = torch.cat((-sin[..., :half], sin[..., half:]), -1).unsqueeze(2)
    cos = cos.unsqueeze(2)

    def turn(
        attention: Any, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = (*query.shape[:2], -1, attention.head_dim)
        if "q_norm" in attention._modules:
            query = _normed(query.view(heads), attention.q_norm)
            key = _normed(key.view(heads), attention.k_norm)
            both = torch.cat((query, key), 2)
        else:
            both = torch.cat((query, key), -1).view(heads)
        both = torch.roll(both, half, -1).mul_(signed).addcmul_(both, cos).transpose(1, 2)
        value = value.view(heads).transpose(1, 2)
        num_keys = value.shape[1]
        query, key = both[:, :-num_keys], both[:, -num_keys:]
        return query, *cache.update(key, value, attention.layer_idx)

    return turn


def _fused_turn(cos: Tensor, sin: Tensor, cache: SlotCache) -> _Turn:
    def turn(
        attention: Any, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        norms = None
        if "q_norm" in attention._modules:
            norm = attention.q_norm
            norms = norm.weight, attention.k_norm.weight, norm.variance_epsilon
        of_heads = value.unflatten(-1, (-1, attention.head_dim))
        keys, values = cache.slots(attention.layer_idx, of_heads)
        at = cache.placement.positions
        query = fused.turn(query, key, value, norms, cos, sin, at, keys, values)
        return query, keys, values

    return turn


def _added(rows: Tensor, added: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """`rows` with `added`, [B, T, hidden], whose memory it may take, and the sum's RMS norm."""
    if added is None:
        return rows, _normed(rows, norm)
    if fused.usable(rows):
        return fused.add_norm(rows, added, norm._parameters["weight"], norm.variance_epsilon)
    rows = added.add_(rows)
    return rows, _normed(rows, norm)


def _gated(gate: Tensor, values: Tensor) -> Tensor:
    """SiLU of `gate` times `values`, in the memory of `gate`."""
    return (
        fused.gate_(gate, values) if fused.usable(gate) else silu(gate, inplace=True).mul_(values)
    )


def _normed(rows: Tensor, norm: Any) -> Tensor:
    """RMS norm of `rows` [..., hidden], in float32 as in transformers."""
    weight, eps = norm._parameters["weight"], norm.variance_epsilon
    if rows.is_cuda and rows.dtype != torch.float64:  # One kernel, which rounds once.
        return rms_norm(rows, weight.shape, weight, eps)
    if rows.dtype != torch.float32:
        whole = rows.float()
        scale = torch.rsqrt(whole.pow(2).mean(-1, keepdim=True) + eps)
        return weight * (whole * scale).to(rows.dtype)
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    scale = length.square_().mul_(1 / rows.shape[-1]).add_(eps).rsqrt_()
    return (rows * scale).mul_(weight)
