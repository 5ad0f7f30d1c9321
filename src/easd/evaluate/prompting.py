"""A task's prompts as token ids."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from easd.engine.chat import encode_turns, without_system_turn
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
