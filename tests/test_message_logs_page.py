"""What docs/message-logs.md tells to type is typed here, against the service as it is run."""

import re

from tests.test_api_keys_page import make_service_key, typed
from tests.test_project_files import ROOT
from tests.test_server import Start, start

__all__ = ["start"]  # the fixture
PAGE = (ROOT / "docs" / "message-logs.md").read_text()


def test_commands_do_what_the_page_says(start: Start, database_url: str) -> None:
    server = start(DATABASE_URL=database_url).ready()
    admin = server.post("/bootstrap").json()["api_key"]
    account = {"email": "ada@example.com", "username": "ada", "password": "turnip-Lantern-42-orbit"}
    assert server.client.post("/api/v1/users", json=account).status_code == 201
    variables = {
        "OCTOPUS_URL": str(server.client.base_url).rstrip("/"),
        "USAGE_KEY": make_service_key(server, admin, "usage:write"),
        "ADMIN_KEY": admin,
    }
    tell, read = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

    told, listed = typed(tell, variables), typed(read, variables)

    assert told == {"accepted": 2, "rejected": [{"index": 2, "reason": "username: there is no such user"}]}
    assert [(log["username"], log["messages"]) for log in listed] == [("ada", 1), ("ada", 2)]
    assert {log["tokens"] for log in listed} == {None, 1830}
