"""Evaluates systems on servers, after checking that every request will be understood."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from easd.errors import ConfigError, EndpointError
from easd.evaluate.endpoint.client import (
    Client,
    RefusedError,
    is_chat,
    make_request,
    path_of,
    read_answer,
)
from easd.evaluate.endpoint.servers import DIALECTS, Server
from easd.evaluate.endpoint.settings import EndpointStudy, EndpointSystem
from easd.evaluate.runner import Chunk, Decoded, GridRun, Progress
from easd.tasks import Item, Task

_SHOWN = 10


async def preflight(
    client: Client, study: EndpointStudy, tasks: list[Task]
) -> tuple[EndpointStudy, list[dict[str, Any]]]:
    """Finds models and dialects, and generates one token with every system.

    Returns:
        The study with its servers filled in, and a description of each server.

    Raises:
        EasdError: A server cannot be reached, does not have the model, refuses a system's requests
            or ignores the field that names the rule.
    """
    servers, found = {}, []
    for server in dict.fromkeys(system.server for system in study.systems):
        models = await _models(client, server)
        chosen = _choose(server, models)
        asked = [s for s in study.systems if s.server == server and s.rule is not None]
        if asked:
            probe = replace(asked[0], server=chosen, rule=None)
            chosen = await _with_dialect(client, study, tasks, probe)
        servers[server] = chosen
        found.append(await _describe(client, chosen, models))
    study = study.resolved(servers)
    for system in study.systems:
        await _one_token(client, study, tasks, system, f"system {system.name!r}")
    return study, found


async def _models(client: Client, server: Server) -> dict[str, dict[str, Any]] | None:
    """The server's models by name; None if it does not list them."""

    def read(answer: Any) -> dict[str, dict[str, Any]]:
        return {str(model["id"]): dict(model) for model in answer["data"]}

    try:
        return await client.ask(
            server, f"{server.url}/models", read=read, what="the list of models", retries=1
        )
    except RefusedError as error:
        if error.status in (404, 405):
            return None
        raise


def _choose(server: Server, models: Mapping[str, Any] | None) -> Server:
    """The server with its model filled in."""
    if models is None:
        if server.model is None:
            raise ConfigError(
                f"{server.shown} does not list its models; name one with --model (in YAML: model)"
            )
        return server
    if server.model in models:
        return server
    has = ", ".join([*list(models)[:_SHOWN], *(["..."] if len(models) > _SHOWN else [])])
    if server.model is not None:
        raise ConfigError(f"{server.shown} has no model {server.model!r}; it has {has or 'none'}")
    if len(models) != 1:
        raise ConfigError(
            f"{server.shown} has {len(models)} models ({has}); name one with --model (in YAML: "
            "model)"
        )
    return replace(server, model=next(iter(models)))


async def _with_dialect(
    client: Client, study: EndpointStudy, tasks: list[Task], probe: EndpointSystem
) -> Server:
    """The probe's server with its dialect filled in.

    A server that accepts a plain request and refuses one with a wrong rule reads the rule.
    """
    server = probe.server
    await _one_token(client, study, tasks, probe, "a request for one token")
    named = [server.dialect] if server.dialect else list(DIALECTS)
    for name in named:
        wrong = replace(probe, body={**probe.body, **DIALECTS[name].wrong})
        try:
            await _one_token(client, study, tasks, wrong, f"a wrong rule in dialect {name!r}")
        except RefusedError:
            return replace(server, dialect=name)
    ways = "; or ".join(DIALECTS[name].missing for name in named)
    raise EndpointError(
        f"{server.shown} ignores the rule that a request names (tried: {', '.join(named)}) and "
        f"would decode all systems the same way; {ways}; or use --system served"
    )


async def _one_token(
    client: Client, study: EndpointStudy, tasks: list[Task], system: EndpointSystem, what: str
) -> None:
    task = tasks[0]
    chat = is_chat(task, study.chat)
    brief = replace(system, sampling={**system.sampling, "max_new_tokens": 1})
    body = make_request(brief, task, task.items[0], seed=0, chat=chat)
    await client.ask(
        system.server,
        f"{system.server.url}{path_of(chat)}",
        body,
        read=lambda answer: read_answer(answer, chat=chat),
        what=what,
    )


async def _describe(
    client: Client, server: Server, models: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A server's entry in run.json, with its version and limits if it reports them."""
    about = (models or {}).get(str(server.model), {})
    try:
        reported = await client.ask(
            server, f"{server.root}/version", read=dict, what="its version", retries=0
        )
    except EndpointError:
        reported = {}
    return {
        "url": server.shown,
        "model": server.model,
        "dialect": server.dialect,
        "version": reported.get("version"),
        "owned_by": about.get("owned_by"),
        "context": about.get("max_model_len"),
    }


class EndpointEvaluation(GridRun[EndpointSystem]):
    """An evaluation of servers in a run folder, new or resumed."""

    config: EndpointStudy

    def __init__(
        self,
        config: EndpointStudy,
        tasks: Sequence[Task],
        folder: str | Path,
        on_wait: Callable[[str], None] | None = None,
        fitted: Mapping[str, Any] | None = None,
    ) -> None:
        """Checks the servers and takes the folder; arguments are those of `GridRun` and `Client`.

        Raises:
            EasdError: A server cannot be used, or the folder holds another run.
        """
        self._loop = asyncio.Runner()
        self._client = Client(config.link, on_wait)
        try:
            config, self._servers = self._loop.run(preflight(self._client, config, list(tasks)))
            super().__init__(config, tasks, folder, fitted)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes all connections."""
        self._loop.run(self._client.close())
        self._loop.close()

    def run(self, on_chunk: Callable[[Progress], None] | None = None) -> None:
        try:
            super().run(on_chunk)
        finally:
            self.close()

    def about(self) -> dict[str, Any]:
        return {
            "models": {"servers": self._servers},
            "client": asdict(self.config.link),
            "versions": {"python": platform.python_version(), "easd": version("easd")},
        }

    def decode(self, chunk: Chunk[EndpointSystem]) -> Decoded:
        return self._loop.run(self._decode(chunk))

    async def _decode(self, chunk: Chunk[EndpointSystem]) -> Decoded:
        places = asyncio.Semaphore(self.config.link.concurrency)

        async def one(item: Item) -> dict[str, Any]:
            async with places:
                return await self._text(chunk, item)

        started = perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                texts = [group.create_task(one(item)) for item in chunk.items]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return Decoded(
            texts=[text.result() for text in texts],
            timing={
                "batch": min(self.config.link.concurrency, len(chunk.items)),
                "seconds": perf_counter() - started,
            },
        )

    async def _text(self, chunk: Chunk[EndpointSystem], item: Item) -> dict[str, Any]:
        system, task = chunk.system, chunk.task
        chat = is_chat(task, self.config.chat)
        body = make_request(system, task, item, seed=chunk.seed, chat=chat)
        started = perf_counter()
        found = await self._client.ask(
            system.server,
            f"{system.server.url}{path_of(chat)}",
            body,
            read=lambda answer: read_answer(answer, chat=chat),
            what=f"item {item.id!r} of {task.name} as {system.name!r}",
        )
        return {**found, "seconds": perf_counter() - started}
