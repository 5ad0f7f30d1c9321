"""A task's prompts as token ids."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from easd.engine.chat import encode_turns, without_system_turn
from easd.engine.pair import Pair
from easd.errors import InputError
from easd.tasks import Item, Task


def encode_item(
    item: Item, task: Task, tokenizer: PreTrainedTokenizerBase, chat: bool | None
) -> list[int]:
    """Token ids of an item's prompt, with the task's system message in a chat.

    If the chat template has no system messages, the user's turn contains it. By default the task
    decides whether to use the template.
    """
    if chat is None:
        chat = task.chat and bool(tokenizer.chat_template)
    turns = [{"role": "user", "content": item.prompt}]
    if chat and task.system is not None:
        system = {"role": "system", "content": task.system}
        turns = without_system_turn([system, *turns], tokenizer)
    return encode_turns(turns, tokenizer, chat=chat)


def encode_task(task: Task, pair: Pair, chat: bool | None, max_new_tokens: int) -> list[list[int]]:
    """Token ids of all prompts of a task.

    Raises:
        InputError: A prompt and its text do not fit the pair's context window.
    """
    prompts = [encode_item(item, task, pair.tokenizer, chat) for item in task.items]
    limit = pair.context_window
    for item, ids in zip(task.items, prompts, strict=True):
        if limit is not None and len(ids) + max_new_tokens > limit:
            raise InputError(
                f"item {item.id!r} of {task.name} has {len(ids)} prompt tokens and "
                f"max_new_tokens is {max_new_tokens}, over the context window of {limit}; lower "
                "max_new_tokens, or leave the item out"
            )
    return prompts
