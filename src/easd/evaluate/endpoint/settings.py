"""Configuration of an evaluation of servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from easd.config import Fill, RunConfig, parse_rule, rule_to_dict
from easd.errors import ConfigError
from easd.evaluate.config import split_rule, unfitted
from easd.evaluate.endpoint.servers import SERVER, Link, Server, parse_endpoint, parse_server
from easd.evaluate.grid import GRID, Grid, listed, parse_grid

SERVED = "served"
# Names of settings, and their names in a request.
SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
    "stop": "stop",
}
_ALWAYS = {"temperature": 1.0, "top_p": 1.0}  # always sent, since servers' defaults differ


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSystem:
    """One way of asking a server.

    Attributes:
        sampling: settings of the request; the server decides others.
        overrides: settings in `sampling` that differ from other systems.
        rule: its name and all fields, so that none is left to the server; None leaves the rule
            to the server.
        body: further fields of the request; null removes one.
        own_server: whether its server is not the study's.
    """

    name: str
    server: Server
    sampling: Mapping[str, Any]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    rule: Mapping[str, Any] | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    own_server: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The system's entry in run.json."""
        settings = dict(self.overrides)
        if self.own_server:
            settings |= {"url": self.server.shown, "model": self.server.model}
        if self.body:
            settings["body"] = dict(self.body)
        return {
            "name": self.name,
            "kind": "endpoint",
            "rule": None if self.rule is None else dict(self.rule),
            "settings": settings,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStudy(Grid[EndpointSystem]):
    """A grid of systems, tasks and seeds on one or several servers.

    Attributes:
        server: of systems that do not name one.
        link: how requests are sent.
        sampling: the systems' default settings.
        chat: whether prompts are sent as chats; by default the task decides.
    """

    server: Server
    link: Link
    sampling: Mapping[str, Any]
    chat: bool | None = None

    def __post_init__(self) -> None:
        Grid.__post_init__(self)
        if self.chunk < self.link.concurrency:
            raise ConfigError(
                f"concurrency = {self.link.concurrency} is more than chunk = {self.chunk}, the "
                "requests that are sent together; raise chunk or lower concurrency"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, fill: Fill = dict) -> EndpointStudy:
        """Builds a study from settings with `endpoint`; see `StudyConfig.from_dict`.

        Raises:
            EasdError: A key is unknown or a value does not fit.
        """
        known = ("endpoint", "chat", *GRID, *SAMPLING)
        for name in values:
            if name not in known:
                raise ConfigError(
                    f"{name!r} cannot be set for an endpoint; choose from {', '.join(known)}"
                )
        server, link = parse_endpoint(values["endpoint"])
        shared = {**_ALWAYS, **_sampling(values)}
        specs = listed(values.get("systems") or SERVED, "systems")
        return cls(
            server=server,
            link=link,
            sampling=shared,
            chat=RunConfig.from_dict({"chat": values.get("chat")}).chat,
            systems=tuple(parse_endpoint_system(spec, server, shared, fill) for spec in specs),
            **parse_grid(values),
        )

    def to_dict(self) -> dict[str, Any]:
        """The configuration in run.json, where systems have an entry of their own."""
        return {
            "endpoint": self.server.shown,
            "model": self.server.model,
            "chat": self.chat,
            "coupling": None,
            **self.sampling,
            **Grid.to_dict(self),
        }

    def resolved(self, servers: Mapping[Server, Server]) -> EndpointStudy:
        """The study with models and dialects of its servers filled in."""
        systems = (replace(system, server=servers[system.server]) for system in self.systems)
        return replace(self, server=servers.get(self.server, self.server), systems=tuple(systems))


def parse_endpoint_system(
    spec: Any, server: Server, shared: Mapping[str, Any], fill: Fill = dict
) -> EndpointSystem:
    """A system from `served`, `rule` or `rule:field=value,...`, or from a mapping.

    A mapping may have `name`, `rule`, sampling settings and `body`. With `url`, `model`,
    `api_key_env` or `dialect` it names another server.

    Raises:
        EasdError: The rule, a field or a setting is unknown, or a value does not fit.
    """
    if isinstance(spec, str):
        spec = {"name": spec} if spec == SERVED else {"name": spec, "rule": spec}
    if not isinstance(spec, Mapping):
        raise ConfigError(f"system {spec!r} is not a rule; write a rule's name, or a mapping")
    known = ("name", "rule", "body", *SERVER, *SAMPLING)
    for key in spec:
        if key not in known:
            raise ConfigError(
                f"system {spec.get('name')!r} has no setting {key!r}; choose from "
                + ", ".join(known)
            )
    body = spec.get("body") or {}
    if not isinstance(body, Mapping):
        raise ConfigError(f"body = {body!r} is not a mapping; write fields of the request")
    given = spec.get("rule")
    given = split_rule(given) if isinstance(given, str) else given
    rule, note, fields = None, "", {}
    if given is not None:
        asked = fill(dict(given))
        rule, note = rule_to_dict(parse_rule(asked)), unfitted(given, fill)
        fields = {key: rule[key] for key in asked if key != "name"}
    overrides = _sampling(spec)
    own_server = any(key in spec for key in SERVER)
    if own_server:
        # A key must not be sent to another server.
        inherited = ("model", "dialect") if "url" in spec else SERVER
        base = {name: getattr(server, name) for name in inherited}
        server = parse_server({**base, **spec})
    return EndpointSystem(
        name=f"{spec.get('name') or _describe(rule, {**fields, **overrides})}{note}",
        server=server,
        sampling={**shared, **overrides},
        overrides=overrides,
        rule=rule,
        body=dict(body),
        own_server=own_server,
    )


def _sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings among the values, checked."""
    given = {name: values[name] for name in SAMPLING if values.get(name) is not None}
    settings = RunConfig.from_dict(given).settings
    found = {name: getattr(settings, name) for name in given}
    return found | ({"stop": list(found["stop"])} if "stop" in found else {})


def _describe(rule: Mapping[str, Any] | None, changed: Mapping[str, Any]) -> str:
    name = rule["name"] if rule else SERVED
    return " ".join([name, *(f"{key}={value}" for key, value in changed.items())])
