"""Turns prompts and conversations into token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from easd.errors import ConfigError, InputError, one_line

# Markers around reasoning: of Qwen3, DeepSeek-R1 and most others; of Magistral.
_REASONING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


class ChatPrompt(list[int]):
    """Token ids of a conversation, and its turns for a draft with another chat template.

    Attributes:
        turns: each with `role` and `content`.
    """

    def __init__(self, ids: Iterable[int], turns: list[dict[str, str]]) -> None:
        super().__init__(ids)
        self.turns = turns


def reasoning_markers(tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, int]:
    """Ids of the tokens that begin and end reasoning.

    Raises:
        ConfigError: There is no tokenizer, or it has no such tokens.
    """
    if tokenizer is None:
        raise ConfigError("scope 'reasoning' follows tokens of the tokenizer; give one")
    known = tokenizer.get_vocab()
    for begin, end in _REASONING:
        if begin in known and end in known:
            return known[begin], known[end]
    pairs = " nor ".join(f"{begin} and {end}" for begin, end in _REASONING)
    raise ConfigError(
        f"scope 'reasoning' follows reasoning markers, and this tokenizer has neither {pairs} as "
        "single tokens; use the scope everywhere"
    )


def encode(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool | None = None,
    system: str | None = None,
) -> list[int]:
    """Token ids of a prompt, either as a user's turn in the chat template or as it is.

    Args:
        prompt: the user's turn, or the text to continue.
        tokenizer: the target's.
        chat: whether to use the chat template; None uses it if there is one.
        system: a system message.
    """
    turns = [{"role": "user", "content": prompt}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    return encode_turns(turns, tokenizer, chat=chat)


def encode_turns(
    turns: list[dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool | None = None,
) -> list[int]:
    """Token ids of a conversation to answer, or without a chat template of a text to continue.

    Args:
        turns: each with `role` and `content`.
        tokenizer: the target's.
        chat: whether to use the chat template; None uses it if there is one.

    Raises:
        ConfigError: A chat is asked for or needed and there is no template.
        InputError: The last turn is empty, or the template refuses them.
    """
    for turn in turns:
        check_characters(turn["content"])
    if not turns[-1]["content"].strip():
        raise InputError("the prompt is empty; give at least one word to go on from")
    has_template = bool(tokenizer.chat_template)
    chat = has_template if chat is None else chat
    if chat and not has_template:
        raise ConfigError("this tokenizer has no chat template; use --no-chat, or chat: false")
    if chat:
        try:
            ids = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_dict=False
            )
            return ChatPrompt(ids, turns)  # type: ignore[arg-type]
        except Exception as error:  # A template is a third-party program and may raise anything.
            reason = one_line(str(error)) or type(error).__name__
            raise InputError(f"the chat template refuses this conversation ({reason})") from None
    if len(turns) > 1:
        raise ConfigError(
            f"the conversation has {len(turns)} messages and no chat template; without one a model "
            "continues a single message"
        )
    return tokenizer(turns[0]["content"])["input_ids"]  # type: ignore[return-value]


def as_turn(message: Any) -> dict[str, str]:
    """A message of a conversation as a turn; refuses anything else."""
    found = dict(message) if isinstance(message, Mapping) else {}
    if not all(isinstance(found.get(name), str) for name in ("role", "content")):
        raise InputError(
            f"message {str(message)[:80]!r} is not a mapping with texts under 'role' and "
            "'content'; give one like {'role': 'user', 'content': 'Hello'}"
        )
    return found


def check_characters(text: str) -> None:
    """Refuses a text with a lone surrogate, half of a character, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt has a lone surrogate (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}, which no tokenizer reads; write it as UTF-8 text"
        ) from None


def without_system_turn(
    turns: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, str]]:
    """The turns, with a system message moved into the user's if the template has no such role.

    Such templates raise an error or silently drop the message.
    """
    if turns[0]["role"] != "system":
        return turns
    system, user, *rest = turns
    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # As above.
        rendered = ""
    if system["content"].strip() in str(rendered):
        return turns
    content = f"{system['content']}\n\n{user['content']}"
    return [{"role": "user", "content": content}, *rest]
