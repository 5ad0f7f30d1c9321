"""The drafters that `Settings.drafter` offers, and how each is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from easd.errors import ConfigError

if TYPE_CHECKING:
    from easd.engine.drafters import Drafter
    from easd.engine.pair import Pair

DrafterKind = Literal["model", "prompt-lookup"]


def make_drafter(
    kind: DrafterKind, pair: Pair, *, gamma: int, num_rows: int, least_block_prob: float
) -> Drafter:
    """A drafter for `num_rows` rows of at most `gamma` draft tokens; 0 drafts none.

    Raises:
        ConfigError: The kind needs a draft model and the pair has none.
    """
    # Imported here, so that parsing settings loads no models' code.
    from easd.engine.drafters import ModelDrafter, NoDrafter, PromptLookupDrafter
    from easd.engine.models.slots import SlotModel
    from easd.engine.other_vocabulary import OtherVocabularyDrafter
    from easd.engine.vocabulary import vocabulary_map

    if gamma == 0:
        return NoDrafter(pair.vocab_size, pair.target.device)
    if kind == "prompt-lookup":
        return PromptLookupDrafter(pair.vocab_size, pair.target.device, gamma)
    if pair.draft is None:
        raise ConfigError("no draft model given; name one, or use drafter='prompt-lookup'")
    if pair.draft_tokenizer is None:
        draft = SlotModel(pair.draft, num_rows, pair.vocab_size)
        return ModelDrafter(draft, pair.vocab_size, least_block_prob)
    words = vocabulary_map(pair.tokenizer, pair.draft_tokenizer)
    draft = SlotModel(pair.draft, num_rows)
    return OtherVocabularyDrafter(draft, words, pair.vocab_size, least_block_prob)
