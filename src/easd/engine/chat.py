"""From what a user wrote to the token ids a model continues."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from easd.errors import ConfigError, InputError


def encode(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool | None = None,
    system: str | None = None,
) -> list[int]:
    """Token ids of a prompt, as a user's turn of the tokenizer's chat template or as it is.

    Args:
        prompt: what the user says, or the text to continue.
        tokenizer: of the target.
        chat: whether to use the chat template; None does where there is one.
        system: a system message.

    Raises:
        ConfigError: A chat or a system message is wanted and there is no template.
        InputError: The prompt is empty.
    """
    if not prompt.strip():
        raise InputError("the prompt is empty; give at least one word to go on from")
    has_template = bool(tokenizer.chat_template)
    chat = has_template if chat is None else chat
    if chat and not has_template:
        raise ConfigError("this tokenizer has no chat template; use --no-chat")
    if not chat and system is not None:
        raise ConfigError("a system message needs a chat template; leave out --system")
    if not chat:
        return tokenizer(prompt)["input_ids"]  # type: ignore[return-value]
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return tokenizer.apply_chat_template(  # type: ignore[return-value]
        messages, add_generation_prompt=True, return_dict=False
    )
