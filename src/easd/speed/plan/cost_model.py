"""Predicts seconds of a pair's forwards and steps from bytes and arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from easd.errors import ModelError
from easd.presets import known_shapes
from easd.speed.plan.hardware import Hardware

_FLOAT32 = 4
_USABLE = 0.9  # Share of the memory; vLLM's default.


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a dense decoder that determine what a forward reads and computes.

    Attributes:
        parameters: entries of all weights.
        products: entries of the matrices that every token is multiplied with.
        width: bytes per entry.
        layers: decoder layers.
        cached: numbers that a token adds to the cache.
        attended: floating-point operations of one token attending to one cached token.
        vocab_size: tokens that can be drawn; with a reduced head, fewer than the config says.
        matrices: entries of each matrix in `products`; if empty, they count as one matrix.
        hidden: size of the hidden state.
    """

    name: str
    parameters: int
    products: int
    width: int
    layers: int
    cached: int
    attended: int
    vocab_size: int
    matrices: tuple[int, ...] = ()
    hidden: int = 0

    @classmethod
    def of(cls, model: nn.Module, name: str) -> Shape:
        """Returns the shape of a loaded model, or of one on the meta device.

        Raises:
            ModelError: It is not a dense decoder.
        """
        config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
        if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
            raise ModelError(
                f"{name!r} is a mixture of experts, whose reads depend on the tokens; "
                "plan dense models"
            )
        heads = config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        linear = (m for m in model.modules() if isinstance(m, nn.Linear | Conv1D))
        # A reduced head (`easd.pairs.smollm2`) lists the tokens it covers.
        known = getattr(model.get_output_embeddings(), "token_ids", None)  # type: ignore[operator]
        matrices = tuple(layer.weight.numel() for layer in linear)
        return cls(
            name=name,
            parameters=sum(p.numel() for p in model.parameters()),
            products=sum(matrices),
            width=next(model.parameters()).element_size(),
            layers=config.num_hidden_layers,
            cached=2 * config.num_hidden_layers * kv_heads * head_size,
            attended=4 * config.num_hidden_layers * heads * head_size,
            vocab_size=config.vocab_size if known is None else len(known),
            matrices=matrices,
            hidden=config.hidden_size,
        )

    @classmethod
    def named(cls, name: str, dtype: torch.dtype = torch.bfloat16) -> Shape:
        """Returns the shape a configuration describes, without loading weights.

        Args:
            name: a hub id, a folder or a config.json.
            dtype: type of the weights.

        Raises:
            ModelError: There is no such configuration, or it is not a dense decoder's.
        """
        known = known_shapes().get(name)
        try:
            config = (
                AutoConfig.from_pretrained(name) if known is None else AutoConfig.for_model(**known)
            )
            with torch.device("meta"):
                model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise ModelError(
                f"no configuration of a causal language model at {name!r} ({first}); "
                "give a hub id, a folder, or a config.json"
            ) from None
        return cls.of(model, name)

    @property
    def weight_bytes(self) -> int:
        return self.parameters * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Predicts the time of a pair, or of a target alone, on some hardware."""

    hardware: Hardware
    target: Shape
    draft: Shape | None = None

    def forward_seconds(self, shape: Shape, texts: int, tokens: int, context: int) -> float:
        """Returns seconds of one forward over `tokens` new and `context` cached tokens per text."""
        on = self.hardware
        rows = texts * tokens
        products = on.product_seconds(shape.matrices or (shape.products,), shape.width, rows)
        attention = max(
            on.cache_seconds(texts * context * shape.cached, shape.width),
            on.compute_seconds(rows * context * shape.attended),
        )
        layers = shape.layers * on.layer_seconds(rows * shape.hidden)
        return products + attention + layers + on.forward_us * 1e-6

    def draft_seconds(self, texts: int, context: int) -> float:
        """Returns seconds to draft one token per text: the forward, and drawing from it."""
        assert self.draft is not None
        on = self.hardware
        drawing = on.vocabulary_seconds(texts * self.draft.vocab_size, on.draw_ns)
        return self.forward_seconds(self.draft, texts, 1, context) + drawing + on.draw_us * 1e-6

    def step_seconds(self, texts: int, gamma: int, context: int) -> float:
        """Returns seconds of a step: `gamma` drafts, one target forward, and verification."""
        on, entries = self.hardware, texts * self.target.vocab_size
        seconds = self.forward_seconds(self.target, texts, gamma + 1, context)
        seconds += (on.step_us + on.text_us * texts * (gamma + 1)) * 1e-6
        if not gamma:
            return seconds + on.vocabulary_seconds(entries, on.draw_ns)
        seconds += gamma * self.draft_seconds(texts, context) + on.verify_us * 1e-6
        return seconds + on.vocabulary_seconds((gamma + 1) * entries, on.verify_ns)

    def texts_that_fit(self, gamma: int, context: int) -> int:
        """Returns how many texts of `context` tokens fit in memory beside the weights."""
        models, per_text, step = self._memory(gamma, context)
        devices = self.hardware.devices
        free = self.usable_bytes * devices - models
        return max(0, int(free // (per_text + step * devices)))

    def missing_bytes(self, texts: int, gamma: int, context: int) -> float:
        """Returns how many bytes the texts exceed the memory by; 0 or less where they fit."""
        models, per_text, step = self._memory(gamma, context)
        devices = self.hardware.devices
        return models + texts * (per_text + step * devices) - self.usable_bytes * devices

    def devices_needed(self, texts: int, gamma: int, context: int) -> int | None:
        """Returns how many such devices the texts need; None where no number is enough."""
        models, per_text, step = self._memory(gamma, context)
        each = self.usable_bytes - texts * step
        return math.ceil((models + texts * per_text) / each) if each > 0 else None

    @property
    def usable_bytes(self) -> float:
        """Memory of one device that a pair can take."""
        return self.hardware.memory_gb * 1e9 * _USABLE

    def _memory(self, gamma: int, context: int) -> tuple[int, int, int]:
        """Returns bytes of the weights, of a text's cache, and of a text's step on every device."""
        models = [self.target, *([self.draft] if self.draft and gamma else [])]
        weights = sum(shape.weight_bytes for shape in models)
        cache = sum(context * shape.cached * shape.width for shape in models)
        # Every device holds the distributions of a step in full.
        return weights, cache, 2 * (gamma + 1) * self.target.vocab_size * _FLOAT32
