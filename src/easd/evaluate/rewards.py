"""Reward models, which score a drafted step after the problem and earlier steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from easd.errors import InputError, ModelError
from easd.pairs import lab
from easd.pairs.lab import reward_folder

_BATCH_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredStep:
    """A drafted step to score, as token ids: the prompt, the text so far, and the step."""

    prompt_ids: tuple[int, ...]
    written_ids: tuple[int, ...]
    step_ids: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The text up to the end of the step."""
        return self.prompt_ids + self.written_ids + self.step_ids


Scorer = Callable[[Sequence[ScoredStep]], Sequence[float]]
"""Returns a reward in [0, 1] for each step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """A classifier of the whole text; the reward is that of the step's last token.

    Attributes:
        model: a sequence or token classifier with one logit (log-odds of a good step) or two (bad,
            good).
        reader: turns the target's ids into the model's; None where they share a vocabulary.
    """

    model: PreTrainedModel
    reader: Callable[[Sequence[int]], list[int]] | None = None

    @torch.inference_mode()
    def __call__(self, steps: Sequence[ScoredStep]) -> list[float]:
        # Without a padding token the model cannot find the end of a shorter text in a batch.
        size = 1 if self.model.config.pad_token_id is None else _BATCH_SIZE
        rewards = []
        for begin in range(0, len(steps), size):
            rewards += self._score([self._ids(step) for step in steps[begin : begin + size]])
        return rewards

    def _ids(self, step: ScoredStep) -> list[int]:
        ids = list(step.ids) if self.reader is None else self.reader(step.ids)
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is not None and len(ids) > limit:
            raise InputError(
                f"a text of {len(ids)} tokens is longer than the reward model's context window of "
                f"{limit}; lower max_new_tokens"
            )
        return ids

    def _score(self, texts: list[list[int]]) -> list[float]:
        longest = max(map(len, texts))
        device = self.model.device
        padding = self.model.config.pad_token_id or 0
        ids = torch.tensor([text + [padding] * (longest - len(text)) for text in texts])
        lengths = torch.tensor([len(text) for text in texts])
        seen = torch.arange(longest) < lengths[:, None]
        logits = self.model(
            input_ids=ids.to(device), attention_mask=seen.long().to(device)
        ).logits.float()
        if logits.ndim == 3:  # logits for every token
            last = (lengths - 1).to(device)
            logits = logits[torch.arange(len(texts), device=device), last]
        good = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)
        return good[:, -1].tolist()


def load_reward_model(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> RewardModel:
    """Loads a sequence or token classifier with one or two labels.

    A model with custom code, or one that needs separators between steps, has to be wrapped in a
    `Scorer` instead.

    Args:
        name: hub id, folder, or name of a `lab` pair that has a reward model.
        tokenizer: of target and draft, if the reward model may have another one.
        dtype: of the weights.
        device: for the model.

    Raises:
        ModelError: The model cannot be loaded, or is not a classifier with one or two labels.
    """
    path = name
    if lab.ALIASES.get(name, name) in lab.STEP_TOKENS:
        path = str(reward_folder(name))
    try:
        config = AutoConfig.from_pretrained(path)
        kind = (config.architectures or [""])[0]
        loader = (
            AutoModelForTokenClassification
            if kind.endswith("ForTokenClassification")
            else AutoModelForSequenceClassification
        )
        if not kind.endswith(("ForTokenClassification", "ForSequenceClassification")):
            raise ValueError(f"its architecture is {kind or 'not named'}, not a classifier")
        own = AutoTokenizer.from_pretrained(path)
        model = loader.from_pretrained(path, dtype=dtype)
    except Exception as error:  # the loaders raise everything from OSError to SafetensorError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(
            f"cannot load the reward model {name!r}: {reason} "
            "(give the hub id or the folder of a sequence or token classifier)"
        ) from error
    if model.config.num_labels not in (1, 2):
        raise ModelError(
            f"the reward model {name!r} has {model.config.num_labels} labels; it needs one "
            "(the log-odds of a good step) or two (bad, good)"
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = own.pad_token_id
    alike = tokenizer is None or own.get_vocab() == tokenizer.get_vocab()
    return RewardModel(
        model=model.to(device).eval(),
        reader=None if tokenizer is None or alike else _translator(tokenizer, own),
    )


def _translator(
    theirs: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase
) -> Callable[[Sequence[int]], list[int]]:
    def read(ids: Sequence[int]) -> list[int]:
        text = theirs.decode(list(ids), skip_special_tokens=True)
        return own(text)["input_ids"]

    return read
