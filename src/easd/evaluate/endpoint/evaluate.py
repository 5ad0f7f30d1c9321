"""Evaluate systems on servers: a chunk's requests go out together, so many at a time."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from easd.evaluate.endpoint.client import Client
from easd.evaluate.endpoint.preflight import preflight
from easd.evaluate.endpoint.requests import is_chat, make_request, path_of, read_answer
from easd.evaluate.endpoint.settings import EndpointStudy, EndpointSystem
from easd.evaluate.runner import Chunk, Decoded, GridRun, Progress
from easd.tasks import Item, Task


class EndpointEvaluation(GridRun[EndpointSystem]):
    """A study of servers in a folder, to be run or to be gone on with."""

    config: EndpointStudy

    def __init__(
        self,
        config: EndpointStudy,
        tasks: Sequence[Task],
        folder: str | Path,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        """Asks the servers what they are, and takes the folder.

        Args:
            config: the study.
            tasks: its tasks, loaded.
            folder: new, or that of the same study.
            on_wait: told, while requests wait to be sent again, why.

        Raises:
            EasdError: A server does not do, or the folder belongs to something else.
        """
        self._loop = asyncio.Runner()
        self._client = Client(config.link, on_wait)
        try:
            config, self._servers = self._loop.run(preflight(self._client, config, list(tasks)))
            super().__init__(config, tasks, folder)
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
        link = self.config.link
        return {
            "models": {"servers": self._servers},
            "client": {
                "concurrency": link.concurrency,
                "timeout": link.timeout,
                "retries": link.retries,
            },
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
