"""A causal language model over cache slots, with forwards at ragged offsets."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from easd.engine.models import graphs
from easd.engine.models.attention import attend, folded_mask
from easd.engine.models.attention_swap import borrowed, borrows
from easd.engine.models.cache import SlotCache
from easd.engine.models.graphs import Graphs, Structure
from easd.engine.models.kept import Kept, keep, take
from easd.engine.models.llama import plain_forward, plain_layers, reads_nothing
from easd.engine.models.packing import PackedLinears
from easd.engine.models.upload import upload
from easd.errors import ModelError

_ATTENTION = "easd_slots"
_LONGEST_RECORDED = 32  # tokens of a row in a forward that becomes a CUDA graph
LONGEST_PIECE = 512  # prompt tokens of a row in one forward, which bounds activations
_SERVED_LAYERS = {"full_attention", "sliding_attention"}
# RoBERTa-like models number positions from their padding token's id on.
_PADDED_POSITIONS = "create_position_ids_from_input_ids"
# The name since transformers 5.24, and the earlier one.
CACHE_KEYWORDS = ("cache", "past_key_values")


class SlotModel:
    """A model and the slots of a batch; `lengths` are the numbers of valid cached tokens by row.

    Args:
        vocab_size: number of tokens that it may be fed, if more than it has. It reads unknown ones
            as token 0 and gives them probability 0.
    """

    def __init__(
        self, model: PreTrainedModel, num_rows: int, vocab_size: int | None = None
    ) -> None:
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self._unknown = max(0, (vocab_size or 0) - self.config.vocab_size)
        self.lengths = [0] * num_rows
        self._window, self._mask_per_kind = _attention_layout(model)
        _check_mode(model)
        self._packed = PackedLinears(model)
        self._limit = context_window(model)
        self._cache_keyword = cache_keyword(model)
        self._head_knows_keep = "logits_to_keep" in signature(model.forward).parameters
        self._kind = num_rows, self._unknown
        serves = graphs.serve(input_device(model))
        kept = take(model, self._kind) if serves else None
        self.cache = kept.cache if kept else SlotCache(num_rows)
        self._graphs = kept.graphs if kept else Graphs()
        self._structure = kept.structure if kept else Structure(model) if serves else None
        self._records: bool | None = None

    @property
    def device(self) -> torch.device:
        return input_device(self.model)

    def prefill(self, first_row: int, prompts: Sequence[Sequence[int]]) -> None:
        """Caches whole prompts into consecutive rows."""
        for row in range(first_row, first_row + len(prompts)):
            self.lengths[row] = 0
        for begin in range(0, max(map(len, prompts)), LONGEST_PIECE):
            self.extend(first_row, [prompt[begin : begin + LONGEST_PIECE] for prompt in prompts])

    def extend(self, first_row: int, pieces: Sequence[Sequence[int]]) -> None:
        """Caches more tokens of consecutive rows, at most `LONGEST_PIECE` of each."""
        longest = max(map(len, pieces))
        # Padding repeats a row's own token, so that another row's text cannot affect it.
        padded = [
            [*piece, *[piece[-1] if piece else 0] * (longest - len(piece))] for piece in pieces
        ]
        self.forward(upload(padded, self.device), first_row, 1, list(map(len, pieces)))
        for row, piece in enumerate(pieces, first_row):
            self.lengths[row] += len(piece)

    def forward(
        self,
        tokens: Tensor,
        first_row: int = 0,
        keep: int | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits [b, keep, V] of the last `keep` of `tokens` [b, T]; does not move `lengths`.

        Args:
            lengths: the number of each row's tokens before padding, [b]; T unless given.
        """
        batch, length = tokens.shape
        if first_row == 0 and length <= _LONGEST_RECORDED and self._recordable:
            return self._replayed(tokens, keep)
        rows = slice(first_row, first_row + batch)
        self.cache.place(rows, self.lengths[rows], length, tokens.device)
        return self._placed_forward(tokens, keep, lengths)

    @property
    def _recordable(self) -> bool:
        """Whether forwards are recorded: those that surely can be, since failing leaves traces."""
        if self._records is None:
            self._records = (
                self._structure is not None
                and not self._structure.runs_python
                and self._window is None
                and reads_nothing(self.model)
            )
        return self._records

    def _replayed(self, tokens: Tensor, keep: int | None) -> Tensor:
        """`forward` as a CUDA graph, over as many rows as a power of two, so that few are recorded.

        What the rows beyond the batch write comes after their texts, as refused tokens do.
        """
        batch, length = tokens.shape
        rows = min(1 << (batch - 1).bit_length(), len(self.lengths))
        starts = self.lengths[:rows]
        self.cache.reserve(max(starts) + length)

        def forward(tokens: Tensor, starts: Tensor) -> Tensor:
            self.cache.place_anywhere(starts, length)
            return self._placed_forward(tokens, keep)

        given = pad(tokens, (0, 0, 0, rows - batch)), upload(starts, tokens.device)
        place = self.cache.placement.capacity
        return self._graphs.run(keep, forward, *given, place=place)[:batch]

    def leave(self) -> None:
        """Leaves graphs and slots to the model's next engine, after which this is of no use."""
        if self._structure is not None and self._recordable:
            keep(self.model, self._kind, Kept(self._graphs, self.cache, self._structure))

    def notice_changes(self) -> None:
        """Drops graphs of the model as it was, if its weights moved or its modules changed."""
        if self._structure is not None and self._structure.has_changed():
            self._graphs.clear()
            self._structure, self._records = Structure(self.model), None

    def _placed_forward(
        self, tokens: Tensor, keep: int | None, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """Logits [b, keep, V] of `tokens` [b, T] in the slots that the cache has placed."""
        length = tokens.shape[1]
        if self._unknown:
            tokens = tokens.masked_fill(tokens >= self.config.vocab_size, 0)
        positions = self.cache.placement.positions
        mask = self._mask(positions)
        # Padding after a short row may exceed the model's last position.
        positions = positions.clamp_max(self._limit - 1) if self._limit else positions
        with self._packed:
            layers = None if self._window is not None else plain_layers(self.model)
            if layers is None:
                logits = self._own_forward(tokens, positions, mask, keep)
            else:
                mask = mask["full_attention"] if isinstance(mask, dict) else mask
                logits = plain_forward(
                    self.model, layers, tokens, positions, mask, self.cache, keep or length, lengths
                )
        return pad(logits, (0, self._unknown), value=-torch.inf) if self._unknown else logits

    def _own_forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | dict[str, Tensor],
        keep: int | None,
    ) -> Tensor:
        """Logits [b, keep, V] by the model's own forward."""
        extra = {"logits_to_keep": keep} if keep is not None and self._head_knows_keep else {}
        with borrowed(self.config, _ATTENTION):
            output = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{self._cache_keyword: self.cache},
                **extra,
            )
        return output.logits if keep is None else output.logits[:, -keep:]

    def move(self, source: int, target: int) -> None:
        """Moves a row's slots to another row."""
        self.lengths[target] = self.lengths[source]
        self.cache.move(source, target, self.lengths[source])

    def swap(self, one: int, other: int) -> None:
        """Exchanges two rows' slots."""
        self.lengths[one], self.lengths[other] = self.lengths[other], self.lengths[one]
        self.cache.swap(one, other)

    def _mask(self, positions: Tensor) -> Tensor | dict[str, Tensor]:
        slots = torch.arange(self.cache.placement.stop, device=positions.device)
        seen = slots <= positions[..., None]
        if self._window is None:
            return self._additive(seen)
        near = self._additive(seen & (slots > positions[..., None] - self._window))
        if not self._mask_per_kind:
            return near
        return {"full_attention": self._additive(seen), "sliding_attention": near}

    def _additive(self, seen: Tensor) -> Tensor:
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device)
        return mask.masked_fill_(~seen, float("-inf"))[:, None]


def context_window(model: PreTrainedModel) -> int | None:
    """The number of positions in a model's config, or None."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def input_device(model: PreTrainedModel) -> torch.device:
    """The device of a model's token ids, even if some weights are offloaded.

    Raises:
        ModelError: None of its weights is in memory.
    """
    embeddings = model.get_input_embeddings().parameters()
    for values in (*embeddings, *model.parameters()):
        if values.device.type != "meta":
            return values.device
    raise ModelError(
        f"the weights of {type(model).__name__} are on the meta device, so there are none to "
        "compute with; load them onto a cpu or a GPU"
    )


def _check_mode(model: PreTrainedModel) -> None:
    """Refuses a model in training mode with gradient checkpointing or dropout."""
    name, advice = type(model).__name__, "call model.eval() before decoding"
    if any(m.training and getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        raise ModelError(
            f"{name} is in training mode with gradient checkpointing, so it caches no keys and "
            f"values; {advice}"
        )
    if any(isinstance(m, nn.Dropout) and m.training and m.p for m in model.modules()):
        raise ModelError(f"{name} is in training mode and its dropout follows no seed; {advice}")


def cache_keyword(model: PreTrainedModel) -> str:
    """The name of the cache argument of a model's forward.

    Raises:
        ModelError: There is none.
    """
    takes = signature(model.forward).parameters
    for name in CACHE_KEYWORDS:
        if name in takes:
            return name
    raise ModelError(
        f"{type(model).__name__}'s forward takes none of {', '.join(CACHE_KEYWORDS)}, so it keeps "
        "no keys and values from forward to forward; decode it alone with transformers' own "
        "generate"
    )


def _attention_layout(model: PreTrainedModel) -> tuple[int | None, bool]:
    """The sliding window, if any, and whether the model takes one mask per kind of layer.

    Raises:
        ModelError: Slots cannot serve the model's kind of cache.
    """
    config = model.config.get_text_config(decoder=True)
    name = type(model).__name__
    advice = "decode it alone with transformers' own generate"
    if model.config.is_encoder_decoder:
        raise ModelError(f"{name} is an encoder-decoder; only decoder-only models are served")
    if getattr(model, "_is_stateful", False):
        raise ModelError(f"{name} keeps a recurrent state that cannot be rolled back; {advice}")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= _SERVED_LAYERS:
        unserved = ", ".join(sorted(kinds - _SERVED_LAYERS))
        raise ModelError(f"{name} has {unserved} layers, which slots cannot serve; {advice}")
    if getattr(config, "alibi", False) or config.model_type in {"bloom", "mpt"}:
        raise ModelError(f"{name} encodes positions in its attention mask (ALiBi); {advice}")
    takes = signature(model.forward).parameters
    if "position_ids" not in takes or any(hasattr(m, _PADDED_POSITIONS) for m in model.modules()):
        raise ModelError(f"{name} numbers positions in its own way, not by position_ids; {advice}")
    window = getattr(config, "sliding_window", None)
    if "layer_types" in config.to_dict() and config.layer_types:
        return (window if "sliding_attention" in kinds else None), True
    return window, False


def _slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention on grouped heads without repeating keys and values."""
    if not borrows():  # Another thread runs the model during a forward of slots.
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    if softcap is not None or s_aux is not None:
        kind = "soft-capped attention" if softcap is not None else "attention sinks"
        raise ModelError(
            f"{type(module).__name__} uses {kind}, which the slot attention does not compute; "
            "decode this model with transformers' own generate"
        )
    attention_mask = folded_mask(attention_mask, query.shape[1] // key.shape[1])
    return attend(query, key, value, attention_mask, scaling).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _slot_attention)
# For other threads: a mask that any kind of attention accepts.
ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION, eager_mask)
