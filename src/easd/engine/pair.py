"""A target and a draft with their tokenizers, and the sizes and hashes of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from easd.core.rules import Rule
from easd.engine.chat import ChatPrompt, encode_turns, without_system_turn
from easd.engine.models.slots import context_window
from easd.errors import ConfigError, InputError, ModelError
from easd.runs.provenance import environment

# Vocabularies are padded to suit the hardware; a larger difference means other tokens.
_MAX_PADDING = 1024
_SAMPLE = 1024  # values of each parameter in a fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A target and its draft, ready to decode.

    Attributes:
        name: shown in reports.
        target: the model to decode.
        draft: None for prompt lookup or the target alone.
        tokenizer: the target's.
        draft_tokenizer: the draft's, or None if both share one.
    """

    name: str
    target: PreTrainedModel
    draft: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    draft_tokenizer: PreTrainedTokenizerBase | None = None

    def __post_init__(self) -> None:
        if self.draft_tokenizer is not None:
            if self.draft is None or self.tokenizer is None:
                raise ConfigError(
                    "draft_tokenizer translates between a draft and a target; give both models and "
                    "both tokenizers"
                )
            if not differing_tokens(self.tokenizer, self.draft_tokenizer):
                object.__setattr__(self, "draft_tokenizer", None)
        object.__setattr__(self, "target", plain_model(self.target))
        if self.draft is not None:
            object.__setattr__(self, "draft", plain_model(self.draft))

    @classmethod
    def of(
        cls,
        target: PreTrainedModel,
        draft: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        draft_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Pair:
        """A pair of loaded models; without a tokenizer, prompts can only be token ids."""
        return cls(
            name="",
            target=target,
            draft=draft,
            tokenizer=tokenizer,  # type: ignore[arg-type]
            draft_tokenizer=draft_tokenizer,
        )

    def seen_by(self, rule: Rule) -> Pair:
        """The pair as `rule` runs it: the draft as target for a rule that runs the draft alone."""
        if rule.models != "draft":
            return self
        if self.draft is None:
            raise ConfigError("this rule decodes with the draft alone; give a draft model")
        if self.draft_tokenizer is not None:
            raise ConfigError(
                "this rule decodes with the draft alone, whose tokenizer is not the target's; "
                "decode with it as the target of a run of its own"
            )
        return Pair(name=self.name, target=self.draft, draft=None, tokenizer=self.tokenizer)

    @property
    def vocab_size(self) -> int:
        """The number of the target's tokens, without rows that pad its embeddings.

        Without a tokenizer, every row counts as a token. The draft may have fewer tokens, which
        limits its proposals, or more, which are cut.

        Raises:
            ModelError: The sizes differ by more than padding or a few added tokens.
        """
        size = rows_of(self.target)
        tokens = size if self.tokenizer is None else min(size, num_tokens(self.tokenizer))
        if self.draft is None or self.draft_tokenizer is not None:
            return tokens
        other = rows_of(self.draft)
        if abs(size - other) > _MAX_PADDING:
            raise ModelError(
                f"draft vocabulary ({other}) differs from target vocabulary ({size}) beyond "
                f"padding ({_MAX_PADDING}); name the draft's own tokenizer, use models that share "
                "one, or the prompt-lookup drafter"
            )
        return tokens

    @property
    def context_window(self) -> int | None:
        """The smaller context window of the two, or None if neither config has one.

        A draft with another tokenizer does not count: beyond its window it stops proposing.
        """
        draft = self.draft if self.draft_tokenizer is None else None
        windows = [context_window(m) for m in (self.target, draft) if m is not None]
        return min((window for window in windows if window), default=None)

    def draft_prompt(self, ids: Sequence[int]) -> tuple[int, ...] | None:
        """A prompt in the chat template of the draft's tokenizer.

        None if the draft has to read the target's prompt, for lack of a tokenizer or a template.
        """
        tokenizer = self.draft_tokenizer
        if tokenizer is None or not tokenizer.chat_template or not isinstance(ids, ChatPrompt):
            return None
        try:
            turns = without_system_turn(ids.turns, tokenizer)
            return tuple(encode_turns(turns, tokenizer, chat=True))
        except InputError:  # Its template refuses a conversation that the target's takes.
            return None

    @property
    def end_tokens(self) -> list[int]:
        """Ids that end a text, by the target's generation config and the tokenizer."""
        ids: Any = getattr(self.target.generation_config, "eos_token_id", None)
        found: list[Any] = [ids] if ids is None or isinstance(ids, int) else list(map(int, ids))
        found.append(getattr(self.tokenizer, "eos_token_id", None))
        return [each for each in dict.fromkeys(found) if each is not None]


def plain_model(model: Any) -> PreTrainedModel:
    """The model inside wrappers of `torch.compile`, data parallelism and peft, with its adapters.

    Raises:
        ModelError: It is no model, or peft adds virtual tokens to prompts.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return plain_model(model.module)
    if isinstance(model, nn.Module) and "_orig_mod" in model._modules:
        return plain_model(model._orig_mod)
    if hasattr(model, "get_base_model"):
        wrapper: Any = model
        config = wrapper.active_peft_config
        if config.is_prompt_learning:
            raise ModelError(
                f"{type(model).__name__} puts virtual tokens before each prompt, which only peft's "
                "own generate does; use an adapter such as LoRA, or decode with that"
            )
        return plain_model(wrapper.get_base_model())
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"{repr(model)[:80]} is no transformers model; load one with from_pretrained, or a "
            "pair by its models' names with easd.load_models"
        )
    return model


def rows_of(model: PreTrainedModel) -> int:
    """The number of rows of a model's embeddings."""
    return model.config.get_text_config(decoder=True).vocab_size


_counted: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, int]] = WeakKeyDictionary()


def num_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than a tokenizer's largest id."""
    size, found = len(tokenizer), _counted.get(tokenizer)
    if found is None or found[0] != size:
        found = _counted[tokenizer] = size, 1 + max(tokenizer.get_vocab().values())
    return found[1]


def differing_tokens(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> int:
    """The number of entries that two vocabularies do not share, except tokens added at the end."""
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    shared = min(num_tokens(tokenizer), num_tokens(other))
    return len(
        {token for token, index in ours.items() if index < shared and theirs.get(token) != index}
        | {token for token, index in theirs.items() if index < shared and ours.get(token) != index}
    )


def model_fingerprint(model: PreTrainedModel) -> str:
    """A hash of every parameter's name, shape and at most 1,024 evenly spaced values.

    Values are hashed as bfloat16, so that a checkpoint has the same hash in every dtype.
    """
    digest = hashlib.blake2b(digest_size=12)
    for name, values in sorted(model.state_dict().items()):
        flat = values.detach().reshape(-1)
        stride = max(1, flat.numel() // _SAMPLE)
        sample = flat[::stride][:_SAMPLE].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(values.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the vocabulary and the chat template."""
    state, found = (len(tokenizer), tokenizer.chat_template), _hashed.get(tokenizer)
    if found is None or found[0] != state:
        what = [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]
        digest = hashlib.blake2b(json.dumps(what).encode(), digest_size=12).hexdigest()
        found = _hashed[tokenizer] = state, digest
    return found[1]


_hashed: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, str]] = WeakKeyDictionary()


def fingerprints(pair: Pair) -> dict[str, str | None]:
    """Hashes of the pair's weights and tokenizers."""
    found = {
        "target": model_fingerprint(pair.target),
        "draft": None if pair.draft is None else model_fingerprint(pair.draft),
        "tokenizer": tokenizer_fingerprint(pair.tokenizer),
    }
    if pair.draft_tokenizer is not None:
        found["draft_tokenizer"] = tokenizer_fingerprint(pair.draft_tokenizer)
    return found


def provenance(pair: Pair) -> dict[str, Any]:
    """The models, versions, hardware and checkout of a run, in types that JSON knows."""
    device = pair.target.device
    return {
        "models": {
            "pair": pair.name,
            "dtype": str(pair.target.dtype).removeprefix("torch."),
            "target_parameters": pair.target.num_parameters(),
            "draft_parameters": None if pair.draft is None else pair.draft.num_parameters(),
            "fingerprints": fingerprints(pair),
        },
        **environment(
            threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        ),
    }
