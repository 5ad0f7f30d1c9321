"""Stop strings, wherever among the last tokens they lie."""

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from easd.engine.stopping import StopStrings
from easd.errors import ConfigError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NOTHING = len(LETTERS)  # A token that decodes to no text.


@pytest.fixture(scope="module")
def tokenizer():
    """A token for each letter, which are decoded without spaces between them."""
    model = Tokenizer(WordLevel({**{c: n for n, c in enumerate(LETTERS)}, "": NOTHING}))
    model.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=model)


def stops(tokenizer, strings, tokens):
    """How many of `tokens`, behind a prompt of two, are decoded before the text ends."""
    criterion = StopStrings(tokenizer, strings, 2)
    text = torch.tensor([[0, 1, *tokens]])
    ended = [n for n in range(1, len(tokens) + 1) if criterion(text[:, : 2 + n], None)]
    return min(ended, default=None)


def test_the_longest_of_several_is_found_token_by_token(tokenizer):
    alphabet = list(range(26))
    assert stops(tokenizer, ["zz", LETTERS], alphabet) == 26
    assert stops(tokenizer, ["zz", LETTERS[:24]], alphabet) == 24
    assert stops(tokenizer, ["zz", LETTERS + "a"], alphabet) is None


def test_tokens_without_text_may_lie_within(tokenizer):
    assert stops(tokenizer, ["ab"], [0, *[NOTHING] * 8, 1]) == 10


def test_the_prompt_does_not_count(tokenizer):
    assert stops(tokenizer, ["ab"], [2, 3]) is None
    assert stops(tokenizer, ["bc"], [2, 3]) is None


def test_an_empty_one_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="stop string is empty"):
        StopStrings(tokenizer, ["a", ""], 0)
