"""An item as a request, and an answer as columns of the samples table."""

from __future__ import annotations

import hashlib
from typing import Any

from easd.evaluate.endpoint.dialects import DIALECTS
from easd.evaluate.endpoint.settings import SAMPLING, EndpointSystem
from easd.tasks import Item, Task

_MOST = 2**31 - 1
# Our columns, and what easd's server says in `usage.completion_tokens_details`.
_COUNTS = {
    "blocks": "target_forwards",
    "proposed": "drafted_tokens",
    "examined": "examined_tokens",
    "accepted": "accepted_tokens",
    "penalised": "penalised_tokens",
}


def is_chat(task: Task, chat: bool | None) -> bool:
    """Whether a task's prompts are sent as chats."""
    return task.chat if chat is None else chat


def path_of(chat: bool) -> str:
    """Behind the server's url."""
    return "/chat/completions" if chat else "/completions"


def make_request(
    system: EndpointSystem, task: Task, item: Item, *, seed: int, chat: bool
) -> dict[str, Any]:
    """The body of a request for one text; `system.server` is resolved."""
    found: dict[str, Any] = {"model": system.server.model}
    if chat:
        message = {"role": "user", "content": item.prompt}
        first = [{"role": "system", "content": task.system}] if task.system else []
        found["messages"] = [*first, message]
    else:
        found["prompt"] = item.prompt
    sampling = {"max_new_tokens": task.max_new_tokens, **system.sampling}
    if task.stop:
        sampling.setdefault("stop", list(task.stop))
    found |= {SAMPLING[name]: value for name, value in sampling.items()}
    found["seed"] = seed_of(seed, task, item)
    if system.rule is not None:
        assert system.server.dialect is not None, "found where the evaluation begins"
        found |= DIALECTS[system.server.dialect].body(system.rule)
    found |= system.body
    return {name: value for name, value in found.items() if value is not None}


def seed_of(seed: int, task: Task, item: Item) -> int:
    """The seed of a request: of its own for every seed and item, and the same for all systems."""
    text = f"{seed}\n{task.name}\n{item.id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest()) >> 1


def read_answer(answer: Any, *, chat: bool) -> dict[str, Any]:
    """Columns of the samples table from a server's JSON, as far as it says them.

    Raises:
        ValueError, KeyError, TypeError, IndexError: It is no completion.
    """
    choice = answer["choices"][0]
    text = choice["message"]["content"] if chat else choice["text"]
    if text is None:  # A model that only reasoned until its tokens were used up.
        text = ""
    if not isinstance(text, str):
        raise ValueError("no text")
    reason = choice.get("finish_reason")
    usage = dict(answer.get("usage") or {})
    counts = dict(usage.get("completion_tokens_details") or {})
    return {
        "text": text.encode(errors="replace").decode(),  # JSON can hold half a character.
        "finish_reason": reason if isinstance(reason, str) else None,
        "prompt_tokens": _count(usage, "prompt_tokens"),
        "new_tokens": _count(usage, "completion_tokens"),
        **{ours: _count(counts, theirs) for ours, theirs in _COUNTS.items()},
    }


def _count(values: dict[str, Any], name: str) -> int | None:
    found = values.get(name)
    return found if isinstance(found, int) and 0 <= found <= _MOST else None
