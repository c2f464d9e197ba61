import orjson
import pytest

from app.api.errors import render_error
from app.core.exceptions import AppError, ObjectExistsError, ObjectNotFoundError, StorageUnavailableError


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (StorageUnavailableError(error="No space left on /srv"), 503, "storage_unavailable", "2"),
        (ObjectNotFoundError(), 404, "not_found", None),
        (ObjectExistsError(), 409, "conflict", None),
    ],
)
def test_an_error_of_the_storage_has_a_clear_answer(
    error: AppError, status: int, code: str, retry_after: str | None
) -> None:
    response = render_error("/api/v1/uploads", error)

    assert response.status_code == status
    assert orjson.loads(response.body)["code"] == code
    assert response.headers.get("retry-after") == retry_after
    assert b"/srv" not in response.body
