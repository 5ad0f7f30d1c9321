"""`easd serve`: loads the models, listens, and shuts down gracefully."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import uvicorn
from rich.console import Console
from rich.text import Text

from easd.engine.pair import Pair
from easd.errors import ConfigError
from easd.pairs.from_config import load_with_status
from easd.serve.app import App
from easd.serve.limits import Connection, is_loopback
from easd.serve.serving import Serving

GRACE_SECONDS = 30.0


def serve(
    serving: Serving, host: str, port: int, check: Callable[[Pair], None] | None = None
) -> None:
    """Loads the models and serves them until SIGINT or SIGTERM.

    `check` raises where the settings do not fit the models.

    Raises:
        EasdError: The models cannot be loaded, the settings do not fit, or the address is taken.
    """
    console = Console(stderr=True)
    with _bind(host, port) as taken:
        pair = load_with_status(serving.config, console)
        if check is not None:
            check(pair)
        local = is_loopback(taken.getsockname()[0])
        server = http_server(App(pair, replace(serving, hosts=_hosts(serving, host, local=local))))
        if not local and serving.api_key is None:
            console.print(Text("note: anyone who reaches this address can use it; see --api-key"))
        host, port = taken.getsockname()[:2]
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        taken.listen()  # Before the address is printed, so that its reader can connect.
        console.print(Text(f"{pair.name} at http://{where}"), soft_wrap=True)
        server.run([taken])


def http_server(app: App, *, grace: float = GRACE_SECONDS) -> uvicorn.Server:
    """Returns a uvicorn server that ends texts which still run `grace` seconds after a signal."""
    config = uvicorn.Config(
        app.asgi(),
        http=Connection,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(grace) + 5,
    )
    return _Server(config, app, grace)


class _Server(uvicorn.Server):
    """Finishes running texts after the first signal and ends the process at the second."""

    def __init__(self, config: uvicorn.Config, app: App, grace: float) -> None:
        super().__init__(config)
        self._app = app
        self._grace = grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            # Without clean-up, which would wait for the forward under way.
            os._exit(128 + sig)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.scheduler.close(self._grace)
        await super().shutdown(sockets)


def _hosts(serving: Serving, host: str, *, local: bool) -> tuple[str, ...] | None:
    """Returns the host names that requests may use; None for any, on a public address."""
    if serving.hosts or local:
        return (*(serving.hosts or ()), host)
    return None


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except (OSError, OverflowError) as error:
        taken.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen at {host} port {port} ({reason}); choose another "
            "--host or --port, or port 0 for any free one"
        ) from None
    return taken
