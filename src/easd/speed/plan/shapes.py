"""What one forward of a model has to read and compute, per token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from easd.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A dense decoder.

    Attributes:
        parameters: entries of all weights.
        products: entries of the matrices that every token is multiplied with.
        width: bytes of an entry.
        layers: decoder layers.
        cached: numbers that a token leaves in the cache.
        attended: multiplications and additions of one token with one cached token.
        vocab_size: tokens that can be drawn; fewer than the output's where its head is reduced.
        matrices: entries of each matrix in `products`; unless given, they count as one.
        hidden: entries of a token's state between layers.
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
        """Counts a loaded model, or one on the meta device.

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
        # A reduced head (`easd.pairs.smollm2`) says which tokens it knows.
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
        """Counts a model by its configuration alone: a hub id, a folder or a config.json.

        Raises:
            ModelError: There is no such configuration, or it is not a dense decoder's.
        """
        try:
            config = AutoConfig.from_pretrained(name)
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
