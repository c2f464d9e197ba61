"""Write `docs/api-reference.md` from the routes: `python3 scripts/write_api_reference.py [--check]`.

With `--check` nothing is written: it fails when the page differs from what would be.
"""

import re
import sys
from typing import TYPE_CHECKING, Any, Final

import environment
from write_files import write_or_check

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PAGE: Final = environment.ROOT / "docs" / "api-reference.md"
HEAD: Final = """\
# API reference

This page is made from the routes by `python3 scripts/write_api_reference.py`. The same as an OpenAPI document is at
`/openapi.json` of the running server, to click through at `/docs`.

**Who.** *Signed in* is a bearer token (`Authorization: Bearer ...`) or an API key (`Octopus-API-Key: ...`). A scope is
one that the caller must hold over what it owns; *over others'*, one that it must hold over everybody's. What each role
and kind of key holds is in `app/core/scopes.py`.

**Bodies** are JSON unless it says otherwise; unknown fields are refused. What is bold must be there. An **id** is 24
hexadecimal digits. **Lists** are paged: the next page is in the `Link` header. Every POST of who is signed in takes an
`Idempotency-Key`.

**Errors** are `application/problem+json` (RFC 9457) with a stable `code`. Whatever is asked may be answered with 400,
413, 429, 500 and 503, what needs a credential also with 401 and 403; other answers are told with each endpoint.

| code | status | meaning |
| --- | --- | --- |
"""
# What an error says only with the numbers of the case.
MEANINGS: Final = {
    "range_not_satisfiable": "The file ends before that range.",
    "rate_limited": "Too many requests. Try again after `Retry-After`.",
    "account_locked": "Too many wrong tries. Try again after `Retry-After`.",
    "internal_error": "Something went wrong on our side.",
}
UNTOLD: Final = {"400", "401", "403", "413", "429", "500", "503"}
ID: Final = {"$ref": "#/components/schemas/PydanticObjectId"}
METHODS: Final = ("get", "post", "put", "patch", "delete")

Node = dict[str, Any]


def main() -> None:
    environment.enter("requirements.txt")
    import service  # noqa: F401, PLC0415 - makes `app` importable

    write_or_check({PAGE: "\n".join(_page()) + "\n"}, __doc__)


def _page() -> "Iterator[str]":
    document = _document()
    yield HEAD + "\n".join(_codes())
    operations = [
        (method, path, item[method]) for path, item in document["paths"].items() for method in METHODS if method in item
    ]
    tags = sorted({operation["tags"][0] for _, _, operation in operations})
    yield "\nEndpoints: " + ", ".join(f"[{tag}](#{_anchor(tag)})" for tag in tags) + ". [Objects](#objects)."
    for tag in tags:
        yield f"\n## {tag}"
        for method, path, operation in operations:
            if operation["tags"][0] == tag:
                yield from _endpoint(method, path, operation, document)
    yield from _objects(operations, document)


def _document() -> Node:
    """The one that the application serves, made without one."""
    from fastapi import FastAPI  # noqa: PLC0415

    from app.api.openapi import describe  # noqa: PLC0415
    from app.api.v1.router import all_routes  # noqa: PLC0415

    return describe(FastAPI(), [route for route in all_routes() if route.include_in_schema])


def _codes() -> "Iterator[str]":
    from app.api.errors import STATUS_OF_KIND, status_of  # noqa: PLC0415
    from app.core import exceptions  # noqa: PLC0415

    known: dict[str, tuple[int, str]] = {"internal_error": (500, MEANINGS["internal_error"])}
    for kind in vars(exceptions).values():
        is_told = isinstance(kind, type) and issubclass(kind, exceptions.AppError)
        if is_told and issubclass(kind, tuple(STATUS_OF_KIND)) and kind.code not in known:
            known[kind.code] = (int(status_of(kind.__new__(kind))), MEANINGS.get(kind.code, kind.message))
    for code, (status, meaning) in sorted(known.items(), key=lambda row: (row[1][0], row[0])):
        yield f"| `{code}` | {status} | {meaning} |"


def _endpoint(method: str, path: str, operation: Node, document: Node) -> "Iterator[str]":
    if not operation.get("description"):
        sys.exit(f"{method.upper()} {path} has no description.")
    yield f"\n#### `{method.upper()} {path}`\n"
    yield _text(operation["description"]) + "\n"
    yield f"*Who*: {_who(operation)}. *Answers*: {', '.join(_answers(operation))}."
    rows = [*_parameters(operation), *_body(operation, document)]
    if rows:
        yield "\n| | in | type | meaning |\n| --- | --- | --- | --- |"
        yield from rows


def _who(operation: Node) -> str:
    security = operation.get("security")
    if security is None:
        return "anyone"
    scope = operation.get("x-scope")
    if scope is None:
        return "anyone; who shows a credential may more" if {} in security else "who is signed in"
    return f"`{scope['name']}`" + (" over others'" if scope["over_others"] else "")


def _answers(operation: Node) -> "Iterator[str]":
    for status, answer in operation["responses"].items():
        if status in UNTOLD:
            continue
        types = {kind: content.get("schema", {}) for kind, content in answer.get("content", {}).items()}
        shown = [_type(schema) if kind == "application/json" else f"`{kind}`" for kind, schema in types.items()]
        shown = [text for text in shown if text and text != "`application/problem+json`"]
        yield " ".join([status, *shown[:1]])


def _parameters(operation: Node) -> "Iterator[str]":
    for parameter in operation.get("parameters", []):
        if parameter["name"] == "Idempotency-Key" or parameter["schema"] == ID:
            continue  # told above, and by the path
        name, schema = parameter["name"], parameter["schema"]
        meaning = parameter.get("description") or schema.get("description", "")
        yield _row(name, parameter["in"], schema, meaning, is_required=parameter.get("required", False))


def _body(operation: Node, document: Node) -> "Iterator[str]":
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        where = "body" if kind == "application/json" else "form" if "form" in kind else f"`{kind}`"
        schema = content.get("schema", {})
        named = _resolved(schema, document)
        if "properties" not in named:
            yield f"| | {where} | {_type(schema)} | |"
        for name, field in named.get("properties", {}).items():
            meaning = field.get("description", "")
            yield _row(name, where, field, meaning, is_required=name in named.get("required", ()))


def _objects(operations: "Iterable[tuple[str, str, Node]]", document: Node) -> "Iterator[str]":
    """What answers and bodies name, at any depth."""
    waiting = sorted({name for *_, operation in operations for name in _named(operation)}, reverse=True)
    found: dict[str, Node] = {}
    while waiting:
        name = waiting.pop()
        if name not in {*found, "PydanticObjectId"}:
            found[name] = document["components"]["schemas"][name]
            waiting.extend(_named(found[name]))
    yield "\n## Objects"
    for name, schema in sorted(found.items()):
        yield f"\n#### {name}\n"
        if description := schema.get("description"):
            yield _text(description) + "\n"
        if "enum" in schema:
            yield _type(schema)
        elif "properties" in schema:
            yield "| field | type | meaning |\n| --- | --- | --- |"
            for field, inner in schema["properties"].items():
                yield f"| `{field}` | {_type(inner)} | {_cell(inner.get('description', ''))} |"


def _named(node: Any) -> "Iterator[str]":
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].rpartition("/")[2]
        for value in node.values():
            yield from _named(value)
    elif isinstance(node, list):
        for value in node:
            yield from _named(value)


def _resolved(schema: Node, document: Node) -> Node:
    reference = schema.get("$ref")
    resolved: Node = document["components"]["schemas"][reference.rpartition("/")[2]] if reference else schema
    return resolved


def _row(name: str, where: str, schema: Node, meaning: str, *, is_required: bool) -> str:
    shown = f"**`{name}`**" if is_required else f"`{name}`"
    default = schema.get("default")
    told = "" if default in (None, "", [], {}) else f" (`{str(default).lower()}`)"
    return f"| {shown} | {where} | {_type(schema)}{told} | {_cell(meaning)} |"


def _type(schema: Node) -> str:
    """In few words."""
    if schema == ID:
        return "id"
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{_anchor(name)})"
    if parts := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return " or ".join(dict.fromkeys(_type(part) for part in parts))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    return _plain(schema)


def _plain(schema: Node) -> str:
    kind, values = str(schema.get("type", "anything")), schema.get("additionalProperties")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}" + _bounds(schema, "Items")
    if kind == "string":
        return str(schema.get("format", "text")) + _bounds(schema, "Length")
    if kind == "object" and isinstance(values, dict):
        return f"object of {_type(values)}"
    return kind + _bounds(schema, "imum")


def _bounds(schema: Node, of: str) -> str:
    least, most = schema.get(f"min{of}"), schema.get(f"max{of}")
    if of == "imum":
        least, most = schema.get("minimum"), schema.get("maximum")
    if least is None and most is None:
        return ""
    if most is None:
        return f", at least {least}"
    return f", up to {most}" if not least else f", {least} to {most}"


def _text(description: str) -> str:
    """A docstring as one paragraph a block."""
    return "\n\n".join(" ".join(block.split()) for block in re.split(r"\n\s*\n", description.strip()))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


if __name__ == "__main__":
    main()
