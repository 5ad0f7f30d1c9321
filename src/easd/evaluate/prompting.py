"""A task's prompts as the models see them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from easd.engine.chat import encode_turns, without_system_turn
from easd.tasks import Item, Task


def encode_item(
    item: Item, task: Task, tokenizer: PreTrainedTokenizerBase, chat: bool | None
) -> list[int]:
    """Token ids of an item's prompt, with the task's system message where it is a chat.

    A chat template without system messages has the instruction in the user's turn.

    Args:
        item: of the task.
        task: says whether its prompts are chats.
        tokenizer: of the target.
        chat: whether to use the chat template; None does as the task says, where there is one.
    """
    if chat is None:
        chat = task.chat and bool(tokenizer.chat_template)
    turns = [{"role": "user", "content": item.prompt}]
    if chat and task.system is not None:
        system = {"role": "system", "content": task.system}
        turns = without_system_turn([system, *turns], tokenizer)
    return encode_turns(turns, tokenizer, chat=chat)
