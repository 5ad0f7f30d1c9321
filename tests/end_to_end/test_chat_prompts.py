"""Conversations and texts as prompts of `easd.generate`."""

import copy

import pytest
from models import llama_pair, word_tokenizer

from easd import generate
from easd.errors import ConfigError, InputError

TEMPLATE = (
    "{% for m in messages %}{{ 'w3 ' if m.role == 'user' else 'w4 ' }}{{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}w5{% endif %}"
)
QUESTION = {"role": "user", "content": "w7 w8"}


def tokenizer(template=TEMPLATE):
    made = copy.deepcopy(word_tokenizer())
    made.chat_template = template
    return made


def prompts(asked, **options):
    options = {"tokenizer": tokenizer(), "max_new_tokens": 2} | options
    return [found.prompt_ids for found in generate(*llama_pair(), asked, **options)]


def test_a_conversation_goes_into_the_template():
    assert prompts([QUESTION]) == [(3, 7, 8, 5)]
    turns = [QUESTION, {"role": "assistant", "content": "w9"}, QUESTION]
    assert prompts(turns) == [(3, 7, 8, 4, 9, 3, 7, 8, 5)]
    assert prompts([turns, [QUESTION]])[1] == (3, 7, 8, 5)


def test_text_is_a_users_turn_only_if_it_is_asked_for():
    assert prompts("w7 w8") == [(7, 8)]
    assert prompts("w7 w8", chat=True) == [(3, 7, 8, 5)]
    assert prompts(["w7", "w8"], chat=True) == [(3, 7, 5), (3, 8, 5)]
    assert prompts([7, 8], chat=True) == [(7, 8)]


@pytest.mark.parametrize(
    ("asked", "options", "error", "says"),
    [
        ([QUESTION], {"tokenizer": None}, ConfigError, "give the tokenizer"),
        ("w7", {"tokenizer": None, "chat": True}, ConfigError, "give the tokenizer"),
        ([QUESTION], {"tokenizer": tokenizer(None)}, ConfigError, "no chat template"),
        ("w7", {"tokenizer": tokenizer(None), "chat": True}, ConfigError, "no chat template"),
        ([{"role": "user"}], {}, InputError, "'role' and 'content'"),
        ([{"role": "user", "content": [1]}], {}, InputError, "'role' and 'content'"),
        ([QUESTION, "w7"], {}, InputError, "message 'w7' is not a mapping"),
        ([{"role": "user", "content": " "}], {}, InputError, "prompt is empty"),
    ],
)
def test_what_is_no_conversation_is_refused(asked, options, error, says):
    with pytest.raises(error, match=says):
        prompts(asked, **options)
