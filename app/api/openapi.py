"""The OpenAPI document: what FastAPI derives, plus who may call and what every error looks like."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from app.api import idempotency
from app.api.deps import API_KEY_HEADER, Needs, QueryOf, if_match, key_creator, optional_principal
from app.api.link_access import file_reader
from app.core.scopes import Scope
from app.core.version import VERSION
from app.schemas.problem import Problem

DESCRIPTION = (
    "Users, API keys, conversations and an audit trail. Sign in for a bearer token, or send an API key in the "
    "header `Octopus-API-Key`. Every error is `application/problem+json` with a stable `code`."
)
_SCHEMES = {
    "bearer": {
        "type": "oauth2",
        "flows": {"password": {"tokenUrl": "/api/v1/auth/token", "refreshUrl": "/api/v1/auth/token", "scopes": {}}},
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": API_KEY_HEADER},
}
_OPTIONAL = (optional_principal, file_reader)
_CREDENTIALS = (Needs, key_creator, *_OPTIONAL)
_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "The ETag of the version that the change is meant for",
    "schema": {"type": "string"},
}
_ALWAYS = (400, 413, 429, 500, 503)
_TITLES = {
    400: "The request could not be understood",
    401: "No valid credential",
    403: "The credential does not allow that",
    404: "There is no such thing, or it is out of sight",
    409: "The state does not allow that",
    412: "It has changed since the version in If-Match",
    413: "The body is too large",
    415: "The body is of the wrong type",
    422: "The body or a parameter is not acceptable",
    429: "Too many requests",
    500: "Something went wrong on our side",
    503: "The database does not answer",
}


def describe(app: FastAPI, routes: Iterable[APIRoute]) -> dict[str, Any]:
    """The document, made once."""
    routes = list(routes)
    document = get_openapi(title="Octopus", version=VERSION, description=DESCRIPTION, routes=routes)
    components = document.setdefault("components", {})
    components["securitySchemes"] = _SCHEMES
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs", {}) | {"Problem": problem}
    for route in routes:
        for method in route.methods or ():
            _complete(document["paths"][route.path_format][method.lower()], route)
    app.openapi_schema = document
    return document


def _complete(operation: dict[str, Any], route: APIRoute) -> None:
    responses = operation["responses"]
    if "422" in responses:
        responses.pop("422")
    for status in sorted(_statuses(route)):
        content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        responses.setdefault(str(status), {"description": _TITLES[status], "content": content})
    if _asks(route.dependant, _CREDENTIALS):
        optional: list[dict[str, list[str]]] = [{}] if _asks(route.dependant, _OPTIONAL) else []
        operation["security"] = [*optional, {"bearer": []}, {"apiKey": []}]
    operation |= _needed(route.dependant)
    operation.setdefault("parameters", []).extend(_query_parameters(route.dependant))
    if _is_repeatable(route):
        operation["parameters"].append(idempotency.PARAMETER)
    if _asks(route.dependant, (if_match,)):
        operation["parameters"].append(_IF_MATCH)


def _needed(dependant: Dependant) -> dict[str, Any]:
    """The scope that it asks for: OpenAPI has a place for that of OAuth only."""
    for found in dependant.dependencies:
        needs = Needs(Scope.API_KEYS_WRITE) if found.call is key_creator else found.call
        if isinstance(needs, Needs) and needs.scope is not None:
            return {"x-scope": {"name": needs.scope, "over_others": needs.over_others}}
    return {}


def _statuses(route: APIRoute) -> set[int]:
    """The errors that a route of this shape can answer with."""
    is_write = bool((route.methods or set()) & {"POST", "PUT", "PATCH", "DELETE"})
    statuses = set(_ALWAYS) | ({404} if "{" in route.path_format else set())
    if _asks(route.dependant, _CREDENTIALS):
        statuses |= {401, 403, 404}
    if is_write:
        statuses |= {401, 403, 409, 412}
    if _is_repeatable(route) or route.body_field or _asks(route.dependant, (QueryOf,)) or route.dependant.header_params:
        statuses |= {415, 422}
    return statuses


def _is_repeatable(route: APIRoute) -> bool:
    """Whether it takes an `Idempotency-Key`."""
    return "POST" in (route.methods or ()) and _asks(route.dependant, _CREDENTIALS)


def _query_parameters(dependant: Dependant) -> list[dict[str, Any]]:
    """The parameters that a list reads as one model, each as the document wants it."""
    models = [found.call.model for found in dependant.dependencies if isinstance(found.call, QueryOf)]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.pop("description", ""),
            "schema": schema,
        }
        for model in models
        for name, schema in _inlined(model.model_json_schema())["properties"].items()
    ]


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its definitions in the places that refer to them."""
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return resolve(definitions[part["$ref"].rpartition("/")[2]])
            return {key: resolve(value) for key, value in part.items()}
        return [resolve(value) for value in part] if isinstance(part, list) else part

    resolved: dict[str, Any] = resolve(schema)
    return resolved


def _asks(dependant: Dependant, wanted: tuple[Any, ...]) -> bool:
    """Whether an endpoint asks for one of these: functions, or classes whose instances are asked for."""
    kinds = tuple(kind for kind in wanted if isinstance(kind, type))
    return any(found.call in wanted or isinstance(found.call, kinds) for found in dependant.dependencies)
