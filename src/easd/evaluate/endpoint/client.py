"""Makes requests of items, sends them with retries, and reads answers into columns."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from itertools import count
from typing import Any, TypeVar

from easd.errors import ConfigError, EndpointError, visible
from easd.evaluate.endpoint.servers import DIALECTS, Link, Server
from easd.evaluate.endpoint.settings import SAMPLING, EndpointSystem
from easd.parsing import parse_json
from easd.tasks import Item, Task

try:
    import httpx2
except ImportError:
    raise ConfigError(
        "endpoints need httpx2, which is not installed; pip install 'easd[study]'"
    ) from None

T = TypeVar("T")

# Seconds.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # unless the server asks for a wait
LONGEST_ASKED = 600.0  # a server that asks for more counts as unavailable
CONNECT = 10.0
LOOK_UP = 30.0  # limit of requests that need no decoding

_PASSING = (408, 425, 429)
_MESSAGE = 300  # most characters of a server's message

_WAY_OUT = {
    401: "set the environment variable with its key and name it with api_key_env",
    403: "set the environment variable with its key and name it with api_key_env",
    404: "check the url (it usually ends in /v1) and the model",
}
_CHANGE = "change the system's settings or body, or the server"


class RefusedError(EndpointError):
    """A request was refused for good, with the answer's `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Passing(Exception):
    """A failure that may not recur; `wait` is how many seconds the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Client:
    """Sends requests to any number of servers, within one event loop."""

    def __init__(self, link: Link, on_wait: Callable[[str], None] | None = None) -> None:
        """Opens no connection yet; `on_wait` gets one reason while any number of requests wait."""
        self.link = link
        self._on_wait = on_wait
        self._waiting = 0
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(None, connect=CONNECT),
            limits=httpx2.Limits(
                max_connections=link.concurrency, max_keepalive_connections=link.concurrency
            ),
            headers={"User-Agent": f"easd/{version('easd')}"},
        )

    async def close(self) -> None:
        """Closes all connections."""
        await self._http.aclose()

    async def ask(
        self,
        server: Server,
        url: str,
        body: Mapping[str, Any] | None = None,
        *,
        read: Callable[[Any], T],
        what: str,
        retries: int | None = None,
    ) -> T:
        """Sends a request until it is answered.

        Args:
            server: gives the key.
            url: the whole address.
            body: sent as JSON with POST; without, the method is GET.
            read: reads the answer's JSON; ValueError, KeyError, TypeError or IndexError mean that
                it is not such an answer.
            what: names the request in errors.
            retries: those of the link by default.

        Raises:
            RefusedError: The server answers with a status that another try would not change.
            EndpointError: Every try failed.
        """
        headers = server.headers()
        retries = self.link.retries if retries is None else retries
        for attempt in count():
            try:
                return read(await self._try(server, url, headers, body, what))
            except _Passing as passing:
                reason, asked = str(passing), passing.wait
            except (ValueError, KeyError, TypeError, IndexError):
                reason, asked = "its answer is not what OpenAI's API returns", 0.0
            if attempt == retries or asked > LONGEST_ASKED:
                times = f" after {attempt + 1} tries" if attempt else ""
                raise EndpointError(
                    f"{server.shown} gave no answer to {what}{times}: {reason}; see that it runs, "
                    "and start the same command again"
                )
            await self._wait(server, reason, max(asked, _backoff(attempt)))
        raise AssertionError("counting does not end")

    async def _try(
        self,
        server: Server,
        url: str,
        headers: Mapping[str, str],
        body: Mapping[str, Any] | None,
        what: str,
    ) -> Any:
        """One try; returns the answer's JSON."""
        method, limit = "POST", self.link.timeout
        if body is None:
            method, limit = "GET", min(limit, LOOK_UP)
        try:
            async with asyncio.timeout(limit):
                response = await self._http.request(method, url, json=body, headers=headers)
        except TimeoutError:
            raise _Passing(f"nothing within {limit:g} s") from None
        except httpx2.RequestError as error:
            raise _Passing(f"{type(error).__name__} {error}".strip()) from None
        status = response.status_code
        if status in _PASSING or status >= 500:
            reason = f"status {status} ({_message(response)})"
            raise _Passing(reason, _asked_wait(response.headers.get("retry-after")))
        if status != 200:
            raise RefusedError(
                f"{server.shown} answers {what} with status {status} ({_message(response)}); "
                f"{_WAY_OUT.get(status, _CHANGE)}",
                status,
            )
        try:
            return parse_json(response.content)
        except ValueError:
            raise _Passing(f"no JSON but {_short(response.text)!r}") from None

    async def _wait(self, server: Server, reason: str, seconds: float) -> None:
        if self._on_wait is not None and not self._waiting:
            self._on_wait(f"{server.shown}: {reason}; trying again in {seconds:.0f} s")
        self._waiting += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._waiting -= 1


def _backoff(attempt: int) -> float:
    """Seconds to wait, doubled with every try; jitter spreads requests that failed together."""
    return min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)


def _asked_wait(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 if unreadable."""
    if header is None:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _message(response: httpx2.Response) -> str:
    """The error message of an answer, in the formats that servers use."""
    try:
        said = parse_json(response.content)
    except ValueError:
        return _short(response.text) or "no message"
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(name):
            said = said[name]
    return _short(said if isinstance(said, str) else json.dumps(said))


def _short(text: str) -> str:
    text = visible(" ".join(text[: 4 * _MESSAGE].split()))
    return text if len(text) <= _MESSAGE else f"{text[: _MESSAGE - 1]}…"


_MOST = 2**31 - 1
# Columns, and the names of easd's server in `usage.completion_tokens_details`.
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
    """The path after the server's url."""
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
    """A request's seed, which depends on seed and item but not on the system."""
    text = f"{seed}\n{task.name}\n{item.id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest()) >> 1


def read_answer(answer: Any, *, chat: bool) -> dict[str, Any]:
    """Columns of the samples table from a server's JSON, None where it lacks them.

    Raises:
        ValueError, KeyError, TypeError, IndexError: It is not a completion.
    """
    choice = answer["choices"][0]
    text = choice["message"]["content"] if chat else choice["text"]
    if text is None:  # the model reasoned until the token limit
        text = ""
    if not isinstance(text, str):
        raise ValueError("no text")
    reason = choice.get("finish_reason")
    usage = dict(answer.get("usage") or {})
    counts = dict(usage.get("completion_tokens_details") or {})
    return {
        "text": text.encode(errors="replace").decode(),  # JSON can hold a lone surrogate
        "finish_reason": reason if isinstance(reason, str) else None,
        "prompt_tokens": _count(usage, "prompt_tokens"),
        "new_tokens": _count(usage, "completion_tokens"),
        **{ours: _count(counts, theirs) for ours, theirs in _COUNTS.items()},
    }


def _count(values: dict[str, Any], name: str) -> int | None:
    found = values.get(name)
    return found if isinstance(found, int) and 0 <= found <= _MOST else None
