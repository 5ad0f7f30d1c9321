"""Servers, how requests are sent to them, and how a request names its rule."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from easd.errors import ConfigError
from easd.evaluate.grid import whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A way for a request to name its rule.

    Attributes:
        body: fields of a request, from the rule's name and fields.
        wrong: fields that a server with this dialect answers with a 4xx status.
        missing: advice where a server does not have the dialect.
    """

    body: Callable[[Mapping[str, Any]], dict[str, Any]]
    wrong: Mapping[str, Any]
    missing: str


def _easd(rule: Mapping[str, Any]) -> dict[str, Any]:
    fields = {key: value for key, value in rule.items() if key != "name"}
    return {"speculative": {"rule": rule["name"], **fields}}


def _vllm(rule: Mapping[str, Any]) -> dict[str, Any]:
    if rule["name"] == "speculative":
        return {"vllm_xargs": {"easd": False}}
    return {"vllm_xargs": {"easd": json.dumps(dict(rule))}}  # xargs cannot be mappings


DIALECTS: Mapping[str, Dialect] = {
    "easd": Dialect(
        body=_easd,
        wrong={"speculative": {"rule": "no such rule"}},
        missing="serve it with `easd serve`",
    ),
    "vllm": Dialect(
        body=_vllm,
        wrong={"vllm_xargs": {"easd": "no such switch"}},
        missing="start vLLM with the plugin configured (docs/vllm.md)",
    ),
}


SERVER = ("url", "model", "api_key_env", "dialect")
LINK = ("concurrency", "timeout", "retries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An OpenAI-compatible server and one of its models.

    Attributes:
        url: the address before `/chat/completions`; `/v1` is added to a bare host.
        model: as the server lists it; by default its only one.
        api_key_env: the environment variable with the key, if one is sent.
        dialect: a name in `DIALECTS`; by default it is probed.
    """

    url: str
    model: str | None = None
    api_key_env: str | None = None
    dialect: str | None = None

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            raise ConfigError(
                f"url = {self.url!r} is not the address of an endpoint; write http://host:port/v1"
            )
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
        object.__setattr__(self, "url", urlunsplit(parts._replace(path=path, fragment="")))
        if self.dialect is not None and self.dialect not in DIALECTS:
            raise ConfigError(
                f"dialect = {self.dialect!r} is not known; choose one of {', '.join(DIALECTS)}"
            )

    @property
    def shown(self) -> str:
        """The address without user name and password."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def root(self) -> str:
        """The address without `/v1`, for paths that are not OpenAI's."""
        return self.url.removesuffix("/v1")

    def headers(self) -> dict[str, str]:
        """The headers of every request.

        Raises:
            ConfigError: The environment variable holds no key.
        """
        if self.api_key_env is None:
            return {}
        key = os.environ.get(self.api_key_env, "").strip()
        if not (key and key.isascii() and key.isprintable()):
            raise ConfigError(
                f"the environment variable {self.api_key_env} holds no key; set it to that of "
                f"{self.shown}"
            )
        return {"Authorization": f"Bearer {key}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How requests are sent.

    Attributes:
        concurrency: most requests at once.
        timeout: seconds until an unanswered request is sent again.
        retries: most retries of a request after time-outs, broken connections, 429 and 5xx.
    """

    concurrency: int = 16
    timeout: float = 600.0
    retries: int = 6

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} = {getattr(self, name)} is too small; use {least} or more"
                )
        if not self.timeout > 0:
            raise ConfigError(f"timeout = {self.timeout:g} gives no time; use more than 0 seconds")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_fits = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https") and bool(parts.hostname) and port_fits and not parts.query
    )


def parse_endpoint(spec: Any) -> tuple[Server, Link]:
    """Server and link from a URL, or from a mapping with `url` and fields of both.

    Raises:
        ConfigError: A field is unknown or does not fit.
    """
    values = dict(spec) if isinstance(spec, Mapping) else {"url": spec}
    unknown = set(values) - {*SERVER, *LINK}
    if unknown:
        raise ConfigError(
            f"endpoint has no field {unknown.pop()!r}; choose from {', '.join((*SERVER, *LINK))}"
        )
    if values.get("url") is None:
        raise ConfigError("endpoint has no url; write one, such as http://127.0.0.1:8000/v1")
    numbers: dict[str, Any] = {
        name: whole(values[name], name) for name in ("concurrency", "retries") if name in values
    }
    if "timeout" in values:
        try:
            numbers["timeout"] = float(values["timeout"])
        except (TypeError, ValueError):
            raise ConfigError(
                f"timeout = {values['timeout']!r} is not a number of seconds; use 600 or so"
            ) from None
    return parse_server(values), Link(**numbers)


def parse_server(values: Mapping[str, Any]) -> Server:
    """The server that a mapping names; other keys are ignored."""
    given = {name: values[name] for name in SERVER if values.get(name) is not None}
    return Server(**{name: str(value) for name, value in given.items()})
