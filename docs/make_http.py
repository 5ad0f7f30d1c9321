"""Write docs/http.md from the server's own OpenAPI description: `python docs/make_http.py`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easd.config import RunConfig
from easd.pairs.loading import load_pair
from easd.serve.app import App
from easd.serve.serving import Serving

PAGE = Path(__file__).with_name("http.md")

HEAD = """<!-- Written by docs/make_http.py from the server's own OpenAPI description. -->

# HTTP

This page lists the endpoints of `easd serve`, as the server describes them at `/openapi.json`.
`/metrics` (Prometheus) and `/` ([the page](page.md)) are not in it. Fields that are not listed are
refused, not ignored. A field that is null counts as absent.
"""

LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "{} characters or more",
    "maxLength": "{} characters or fewer",
    "minItems": "{} items or more",
    "maxItems": "{} items or fewer",
    "maxProperties": "{} entries or fewer",
}


def page() -> str:
    """Returns every route with its body and responses, then every object that they name."""
    pair = load_pair("lab-a")
    app = App(pair, Serving(config=RunConfig(pair="lab-a"))).asgi()
    description = app.openapi()
    lines = [HEAD]
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            lines += route(f"{method.upper()} {path}", operation)
    lines.append("## Objects\n")
    schemas = description["components"]["schemas"]
    for name in sorted(reached(description["paths"], schemas)):
        lines += described(name, schemas[name])
    return "\n".join(lines).strip() + "\n"


def route(title: str, operation: dict[str, Any]) -> Iterator[str]:
    """Yields the section about one route."""
    yield f"## {title}\n\n{operation['description']}\n"
    body = operation.get("requestBody")
    if body:
        yield f"Body: {kind(body['content']['application/json']['schema'])}.\n"
    yield "| status | answer |\n|---|---|"
    for status, answer in operation["responses"].items():
        schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
        said = "" if answer["description"] == "Successful Response" else answer["description"]
        shape = kind(schema) if "$ref" in schema else ""
        if not said and not shape:
            shape = " or ".join(answer.get("content", {}))
        yield f"| {status} | {'; '.join(filter(None, (said, shape)))} |"
    yield ""


def described(name: str, schema: dict[str, Any]) -> Iterator[str]:
    """A section about one kind of object."""
    yield f"### {name}\n\n{' '.join(schema.get('description', '').split())}\n"
    yield "| field | kind | default | |\n|---|---|---|---|"
    for field, about in schema.get("properties", {}).items():
        default = "required" if field in schema.get("required", ()) else shown(about.get("default"))
        yield f"| `{field}` | {kind(about)} | {default} | {about.get('description', '')} |"
    yield ""


def reached(start: Any, schemas: dict[str, Any]) -> set[str]:
    """The objects that `start` names, and those that these name, and so on."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(waiting.pop())))
        waiting += [schemas[name] for name in named - found]
        found |= named
    return found


def shown(default: Any) -> str:
    """A default; nothing where leaving the field out decides nothing."""
    return "" if default is None else f"`{default}`"


def kind(schema: dict[str, Any]) -> str:
    """What values a schema takes, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if kinds := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(kind(each) for each in kinds if each.get("type") != "null")
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    word = schema.get("type", "anything")
    if word == "array":
        word = f"list of {kind(schema['items'])}"
    elif word == "object" and isinstance(schema.get("additionalProperties"), dict):
        word = f"object of {kind(schema['additionalProperties'])}"
    limits = [text.format(schema[key]) for key, text in LIMITS.items() if key in schema]
    return ", ".join([word, *limits])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
