import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from bson import ObjectId
from httpx import AsyncClient, Response

from app.core.scopes import Role
from tests.factories import PASSWORD, make_api_key, make_conversation, make_signed_in

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
PUBLIC = {
    ("get", "/"),
    ("get", "/health"),
    ("get", "/health/live"),
    ("get", "/health/ready"),
    ("post", "/bootstrap"),
    ("post", "/api/v1/auth/login"),
    ("post", "/api/v1/auth/token"),
    ("post", "/api/v1/auth/refresh"),
    ("post", "/api/v1/auth/password/forgot"),
    ("post", "/api/v1/auth/password/reset"),
    ("post", "/api/v1/auth/email/verify"),
    ("get", "/api/v1/users/username/{username}"),
    ("get", "/.well-known/jwks.json"),
    ("put", "/api/v1/uploads/{upload_id}/bytes"),
}
# Anyone may, but who shows credentials may more: the registration may be closed to strangers.
OPTIONAL = {
    ("post", "/api/v1/users"),
    ("post", "/api/v1/auth/register"),
    ("post", "/api/v1/auth/email/verify/request"),
    ("get", "/api/v1/uploads/{upload_id}"),
    ("get", "/api/v1/uploads/{upload_id}/content"),
    ("get", "/api/v1/uploads/{upload_id}/thumbnail"),
    ("get", "/api/v1/uploads/{upload_id}/text"),
}
CONDITIONAL = {
    (method, path)
    for method in ("put", "patch", "delete")
    for path in (
        "/api/v1/conversations/{conversation_id}",
        "/api/v1/items/{item_id}",
        "/api/v1/users/me",
        "/api/v1/users/{user_id}",
    )
}
CONDITIONAL.add(("patch", "/api/v1/admin/users/{user_id}"))

Document = dict[str, Any]


class Operation(NamedTuple):
    method: str
    path: str
    content: dict[str, Any]


_given: list[bytes] = []


@pytest.fixture
async def document(client: AsyncClient) -> Document:
    """Read once in a process: making it takes longer than most tests."""
    if not _given:
        _given.append((await client.get("/openapi.json")).content)
    content: Document = json.loads(_given[0])
    return content


def operations(document: Document) -> list[Operation]:
    return [
        Operation(method, path, content)
        for path, item in document["paths"].items()
        for method, content in item.items()
        if method in METHODS
    ]


def references(node: Any) -> Iterator[str]:
    """Every `$ref` below the node."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolved(document: Document, reference: str) -> Any:
    node: Any = document
    assert reference.startswith("#/")
    for name in reference[2:].split("/"):
        node = node[name.replace("~1", "/").replace("~0", "~")]
    return node


class TestPages:
    @pytest.mark.parametrize(
        ("path", "content_type"),
        [("/docs", "text/html"), ("/redoc", "text/html"), ("/openapi.json", "application/json")],
    )
    async def test_are_served(self, client: AsyncClient, path: str, content_type: str) -> None:
        response = await client.get(path)

        assert response.status_code == 200
        assert response.headers["content-type"].startswith(content_type)


class TestDocument:
    async def test_is_openapi_3_1(self, document: Document) -> None:
        assert document["openapi"].startswith("3.1.")
        assert document["info"]["title"] == "Octopus"
        assert document["info"]["version"] == "0.1.0"
        assert len(document["paths"]) > 20

    async def test_is_the_same_when_asked_again(self, client: AsyncClient, document: Document) -> None:
        again = (await client.get("/openapi.json")).json()

        assert again == document

    async def test_refers_only_to_what_it_holds(self, document: Document) -> None:
        found = set(references(document))

        assert len(found) > 10
        for reference in found:
            assert isinstance(resolved(document, reference), dict)

    async def test_holds_no_schema_that_nothing_refers_to(self, document: Document) -> None:
        used = {reference.rpartition("/")[2] for reference in references(document)}

        assert document["components"]["schemas"].keys() - used == set()

    async def test_names_every_parameter_of_a_path(self, document: Document) -> None:
        for method, path, operation in operations(document):
            in_path = {part[1:-1] for part in path.split("/") if part.startswith("{")}
            declared = {item["name"] for item in operation.get("parameters", []) if item["in"] == "path"}
            assert declared == in_path, (method, path)

    async def test_has_schemes_for_both_credentials(self, document: Document) -> None:
        schemes = document["components"]["securitySchemes"]
        [bearer, api_key] = [schemes[name] for name in ("bearer", "apiKey")]
        token_url = bearer["flows"]["password"]["tokenUrl"]

        assert (bearer["type"], api_key["type"], api_key["in"]) == ("oauth2", "apiKey", "header")
        assert api_key["name"].lower() == "octopus-api-key"
        assert "post" in document["paths"][token_url]


class TestOperations:
    async def test_have_names_of_their_own(self, document: Document) -> None:
        names = Counter(operation["operationId"] for _, _, operation in operations(document))

        assert [name for name, count in names.items() if count > 1] == []

    async def test_have_a_summary_a_description_and_a_tag(self, document: Document) -> None:
        for method, path, operation in operations(document):
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            assert operation["tags"], (method, path)

    async def test_describe_what_they_answer_with(self, document: Document) -> None:
        for method, path, operation in operations(document):
            good = {status: answer for status, answer in operation["responses"].items() if status < "300"}
            assert good, (method, path)
            for status, answer in good.items():
                kinds = answer.get("content", {})
                assert bool(kinds) == (status != "204"), (method, path)
                assert all(kind.get("schema") for kind in kinds.values()), (method, path)

    async def test_describe_every_error_as_a_problem(self, document: Document) -> None:
        for method, path, operation in operations(document):
            errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
            assert errors.keys() >= {"429", "500", "503"} - _unlimited(path), (method, path)
            for status, answer in errors.items():
                kinds = answer["content"]
                assert answer["description"], (method, path, status)
                if "application/problem+json" not in kinds:
                    assert (status, path) in {("503", "/health"), ("503", "/health/ready")}
                else:
                    schema = kinds["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}

    async def test_describe_what_a_body_can_be_refused_with(self, document: Document) -> None:
        with_body = [operation for operation in operations(document) if "requestBody" in operation.content]

        assert len(with_body) > 10
        for method, path, operation in with_body:
            assert operation["responses"].keys() >= {"400", "413", "415", "422"}, (method, path)

    async def test_say_who_may_call(self, document: Document) -> None:
        for method, path, operation in operations(document):
            security = operation.get("security", [])
            if (method, path) in PUBLIC:
                assert security == [], (method, path)
            else:
                assert {"bearer": []} in security, (method, path)
                assert {"apiKey": []} in security, (method, path)
                assert ({} in security) == ((method, path) in OPTIONAL), (method, path)

    async def test_describe_the_refusal_of_credentials(self, document: Document) -> None:
        for method, path, operation in operations(document):
            if operation.get("security"):
                assert operation["responses"].keys() >= {"401", "403"}, (method, path)

    async def test_describe_conditional_writes(self, document: Document) -> None:
        for method, path, operation in operations(document):
            if (method, path) not in CONDITIONAL:
                continue
            headers = [item["name"].lower() for item in operation.get("parameters", []) if item["in"] == "header"]
            assert "if-match" in headers, (method, path)
            assert "412" in operation["responses"], (method, path)


def _unlimited(path: str) -> set[str]:
    """Probes have no limit on their rate."""
    return {"429"} if path.startswith("/health") else set()


class TestProblem:
    async def test_has_the_fields_that_errors_have(self, client: AsyncClient, document: Document) -> None:
        schema = document["components"]["schemas"]["Problem"]
        body = (await client.post("/api/v1/auth/login", json={"email": 7})).json()

        assert set(schema["required"]) <= body.keys() <= schema["properties"].keys()
        assert set(schema["required"]) == {"type", "title", "status", "detail", "instance", "code", "request_id"}


class TestAnswers:
    """Operations answer only with the statuses and fields that the document names."""

    async def test_to_strangers_are_documented(self, client: AsyncClient, document: Document) -> None:
        login = "/api/v1/auth/login"
        account = {"email": "ada@example.com", "password": PASSWORD}
        exchanges = [
            ("get", "/", await client.get("/")),
            ("get", "/health", await client.get("/health")),
            ("post", "/bootstrap", await client.post("/bootstrap")),
            ("post", "/bootstrap", await client.post("/bootstrap")),
            ("post", "/api/v1/users", await client.post("/api/v1/users", json=account)),
            ("post", "/api/v1/users", await client.post("/api/v1/users", json=account)),
            ("post", "/api/v1/users", await client.post("/api/v1/users", json={"email": "x"})),
            ("post", login, await client.post(login, json=account)),
            ("post", login, await client.post(login, json=account | {"password": "wrong"})),
            ("post", login, await client.post(login, content="{", headers={"Content-Type": "application/json"})),
            ("post", login, await client.post(login, content="{}", headers={"Content-Type": "text/plain"})),
            ("post", login, await client.post(login, content=b" " * 1_100_000)),
            ("get", "/api/v1/users/username/{username}", await client.get("/api/v1/users/username/nobody")),
            ("get", "/api/v1/auth/me", await client.get("/api/v1/auth/me")),
        ]

        statuses = [response.status_code for *_, response in exchanges]
        assert statuses == [200, 200, 201, 409, 201, 409, 422, 200, 401, 400, 415, 413, 404, 401]
        _assert_documented(document, exchanges)

    async def test_to_users_are_documented(self, client: AsyncClient, document: Document) -> None:
        ada, bob, admin = await make_signed_in(), await make_signed_in(), await make_signed_in(role=Role.ADMIN)
        key = await make_api_key("conversations:read")
        both, mine = await make_conversation(ada, bob), await make_conversation(ada)
        path, user_path = "/api/v1/conversations/{conversation_id}", "/api/v1/users/{user_id}"
        url = f"/api/v1/conversations/{mine.id}"
        shown = await client.get(url, headers=ada.headers)
        fresh = {"If-None-Match": shown.headers["etag"]}
        stale = {"If-Match": '"7"'}
        leave = f"/api/v1/conversations/{both.id}/participants/{bob.id}"

        exchanges = [
            ("get", path, shown),
            ("get", path, await client.get(url, headers=ada.headers | fresh)),
            ("get", path, await client.get(f"/api/v1/conversations/{ObjectId()}", headers=ada.headers)),
            ("patch", path, await client.patch(url, headers=ada.headers, json={"title": "Coffee"})),
            ("patch", path, await client.patch(url, headers=ada.headers | stale, json={"title": "Coffee"})),
            ("delete", f"{path}/participants/{{user_id}}", await client.delete(leave, headers=bob.headers)),
            ("delete", path, await client.delete(url, headers=ada.headers)),
            ("post", "/api/v1/conversations", await client.post("/api/v1/conversations", headers=key.headers, json={})),
            ("get", "/api/v1/users", await client.get("/api/v1/users", headers=admin.headers)),
            ("get", "/api/v1/users", await client.get("/api/v1/users?cursor=x", headers=admin.headers)),
            ("get", user_path, await client.get(f"/api/v1/users/{bob.id}", headers=ada.headers)),
            ("post", "/api/v1/auth/logout", await client.post("/api/v1/auth/logout", headers=ada.headers)),
        ]

        statuses = [response.status_code for *_, response in exchanges]
        assert statuses == [200, 304, 404, 200, 412, 204, 204, 403, 200, 400, 403, 204]
        _assert_documented(document, exchanges)


def _assert_documented(document: Document, exchanges: list[tuple[str, str, Response]]) -> None:
    undocumented = [
        (method, path, response.status_code)
        for method, path, response in exchanges
        if str(response.status_code) not in document["paths"][path][method]["responses"]
    ]
    assert undocumented == []
    for method, path, response in exchanges:
        content = document["paths"][path][method]["responses"][str(response.status_code)].get("content", {})
        assert response.headers.get("content-type", "").partition(";")[0] in (content or {""})
        for kind in content.values():
            _assert_fields(document, kind["schema"], response.json())


def _assert_fields(document: Document, schema: dict[str, Any], value: Any) -> None:
    """An object has all the fields that its schema requires, and no others."""
    if "$ref" in schema:
        schema = resolved(document, schema["$ref"])
    if schema.get("type") == "array":
        for item in value:
            _assert_fields(document, schema["items"], item)
    elif "properties" in schema:
        assert set(schema.get("required", [])) <= value.keys() <= schema["properties"].keys()
