"""A task's written solutions as token ids, for the passes that read them."""

from __future__ import annotations

from typing import Any

from easd.diagnose.reference_pass import ReferenceText
from easd.engine.pair import Pair
from easd.errors import InputError
from easd.evaluate.prompting import encode_item
from easd.tasks import Task


def references(task: Task, pair: Pair, chat: bool | None = None) -> list[ReferenceText]:
    """Returns prompt and gold solution of every item that has a solution.

    Args:
        task: its items.
        pair: its tokenizer encodes them.
        chat: whether prompts are put into the chat template; by default the task decides.

    Raises:
        InputError: No item has a solution.
    """
    tokenizer = pair.tokenizer
    found: list[ReferenceText] = []
    for item in task.items:
        if item.reference is None:
            continue
        prompt = encode_item(item, task, tokenizer, chat)
        ids: Any = tokenizer(item.reference, add_special_tokens=False)["input_ids"]
        end: Any = tokenizer.eos_token_id
        found.append((prompt, [*ids, end], item.id))
    if not found:
        raise InputError(
            f"no item of {task.name} has a written solution to read; use a task that has "
            "(gsm8k, math500, lab-a, ...) or a file with 'solution'"
        )
    return found
