import csv
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from httpx import AsyncClient

from app.core.hash_chain import digest
from app.db.mongo import get_database
from tests.api.test_audit_events import URL, make_event
from tests.conftest import Serve
from tests.factories import make_api_key

SCRIPT = Path(__file__).parents[2] / "scripts" / "verify_audit.py"
Raw = dict[str, Any]
Change = Callable[[list[Raw]], object]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[AsyncClient]:
    """The service, after events that are hard to write down."""
    async with serve() as client:
        for number, agent in enumerate([None, "", "=1+1", "'", '"\r\n,;', "Ádá \U0001f43b \u2028", "\t-1"]):
            await make_event(number, user_agent=agent, details={"text": agent, "list": [1, {"b": None, "a": True}]})
        yield client


async def exported(client: AsyncClient, form: str, query: str = "") -> bytes:
    key = await make_api_key("audit:read", name="=auditor")
    return (await client.get(f"{URL}/export?format={form}&{query}", headers=key.headers)).content


@pytest.fixture
async def jsonl(client: AsyncClient) -> bytes:
    return await exported(client, "jsonl")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def start(content: bytes, *options: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "export"
        file.write_bytes(content)
        # Isolated, and without what is installed: with nothing but Python itself.
        command = [sys.executable, "-I", "-S", str(SCRIPT), str(file), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603

    return start


def changed(jsonl: bytes, change: Change) -> bytes:
    rows = [json.loads(line) for line in jsonl.splitlines()]
    change(rows)
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def rewrite(rows: list[Raw], start: int) -> None:
    """Make the hashes fit from there on."""
    for row, before in zip(rows[start:], rows[start - 1 :], strict=False):
        row["prev_hash"] = before["hash"]
        row["hash"] = digest(row)


class TestWhole:
    @pytest.mark.parametrize("form", ["jsonl", "csv"])
    async def test_file_is_told_so(self, client: AsyncClient, run: Run, form: str) -> None:
        ended = run(await exported(client, form))

        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith("8 events, 1 to 8: as they were sealed. The last hash is ")

    @pytest.mark.parametrize("form", ["jsonl", "csv"])
    async def test_file_fits_its_anchor(self, client: AsyncClient, run: Run, form: str) -> None:
        rows = [json.loads(line) for line in (await exported(client, "jsonl")).splitlines()]
        content = await exported(client, form)

        right = run(content, "--anchor", f"5:{rows[4]['hash']}")
        wrong = run(content, "--anchor", f"5:{'0' * 64}")
        beyond = run(content, "--anchor", f"50:{'0' * 64}")

        assert [ended.returncode for ended in (right, wrong, beyond)] == [0, 1, 1]
        assert wrong.stderr.startswith(f"FAULT: event 5 ({rows[4]['id']}) is not that of the anchor")
        assert beyond.stderr.startswith("FAULT: event 50, which the anchor names, is not in the file")

    @pytest.mark.parametrize("form", ["jsonl", "csv"])
    async def test_filtered_file_is_checked_event_by_event(self, client: AsyncClient, run: Run, form: str) -> None:
        content = await exported(client, form, "from=2026-03-01T12:02:00Z&to=2026-03-01T12:05:00Z")
        gaps = await exported(client, form, "action=audit:exported")

        assert run(content).returncode == 0  # a stretch without gaps
        assert run(gaps, "--filtered").returncode == 0
        damaged = run(content.replace(b"2026-03-01T12:03", b"2026-03-01T12:33"), "--filtered")
        assert damaged.returncode == 1
        assert " was altered" in damaged.stderr


class TestFault:
    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            (lambda rows: rows[3]["details"].update(text="x"), "event 4 ({3}) was altered"),
            (lambda rows: rows[3].update(time="2026-01-01T00:00:00.000Z"), "event 4 ({3}) was altered"),
            (lambda rows: rows[3].update(extra=1), "event 4 ({3}) was altered"),
            (lambda rows: rows[3].pop("ip"), "event 4 ({3}) was altered"),
            (lambda rows: rows[3].update(hash=digest(rows[3] | {"ip": "x"}), ip="x"), "event 5 ({4}) does not follow"),
            (
                lambda rows: rows[0].update(prev_hash="1" * 64, hash=digest(rows[0] | {"prev_hash": "1" * 64})),
                "event 1",
            ),
            (lambda rows: rows.pop(3), "event 4 is missing: 5 follows"),
            (lambda rows: rows.insert(3, rows[2]), "event 3 stands where 4 should"),
            (lambda rows: rows.insert(3, rows.pop(4)), "event 4 is missing: 5 follows"),
            (lambda rows: rows[3].update(seq=None), "record 4 is no sealed event"),
            (lambda rows: rows[3].update(seq=4.0), "record 4 is no sealed event"),
            (lambda rows: rows.clear(), "the file has no events"),
        ],
    )
    async def test_is_named(self, jsonl: bytes, run: Run, change: Change, fault: str) -> None:
        ids = [json.loads(line)["id"] for line in jsonl.splitlines()]

        ended = run(changed(jsonl, change))

        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith(f"FAULT: {fault.format(*ids)}")
        assert len(ended.stderr.splitlines()) == 1

    async def test_is_seen_by_an_anchor_when_everything_was_written_anew(self, jsonl: bytes, run: Run) -> None:
        rows = [json.loads(line) for line in jsonl.splitlines()]

        def forge(rows: list[Raw]) -> None:
            rows[2]["details"] = {}
            rewrite(rows, 2)

        forged = changed(jsonl, forge)

        assert run(forged).returncode == 0
        assert run(forged, "--anchor", f"8:{rows[7]['hash']}").returncode == 1

    async def test_is_a_file_that_was_cut_off(self, client: AsyncClient, jsonl: bytes, run: Run) -> None:
        for content in (jsonl, await exported(client, "csv")):
            for left in (len(content) - 30, len(content) // 2 + 7):
                ended = run(content[:left])

                assert (ended.returncode, ended.stderr[:13]) == (1, "FAULT: record")

    @pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xfe", b"{}", b"[]\n", b"a,b\n1,2\n", b"null\n"])
    async def test_is_a_file_of_something_else(self, run: Run, content: bytes) -> None:
        ended = run(content)

        assert (ended.returncode, ended.stderr[:6]) == (1, "FAULT:")
        assert len(ended.stderr.splitlines()) == 1

    async def test_is_named_in_a_cell(self, client: AsyncClient, run: Run) -> None:
        text = (await exported(client, "csv")).decode()
        rows = list(csv.reader(io.StringIO(text, newline="")))
        rows[3][10] = rows[3][10].removeprefix("'")
        rows[5][4] = "eve"
        out = io.StringIO(newline="")
        csv.writer(out).writerows(rows)

        ended = run(out.getvalue().encode())

        assert ended.stderr.startswith(f"FAULT: event 5 ({rows[5][0]}) was altered")


class TestPlanted:
    """What somebody had put into the database before it was sealed."""

    @pytest.mark.parametrize("field", ["actor", "target", "details"])
    async def test_event_whose_part_is_no_document_is_sealed_and_checked_as_lines(
        self, client: AsyncClient, run: Run, field: str
    ) -> None:
        event = await make_event(30)
        await get_database()["audit_events"].update_one({"_id": event.id}, {"$set": {field: "eve"}})

        ended = run(await exported(client, "jsonl"))

        assert (ended.returncode, ended.stderr) == (0, "")

    @pytest.mark.parametrize("value", ["eve", 7, ["eve"]], ids=repr)
    @pytest.mark.parametrize("field", ["actor", "target"])
    async def test_event_whose_part_is_no_document_is_named_in_a_table(
        self, client: AsyncClient, run: Run, field: str, value: object
    ) -> None:
        event = await make_event(30)
        await get_database()["audit_events"].update_one({"_id": event.id}, {"$set": {field: value}})

        ended = run(await exported(client, "csv"))

        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("FAULT: event ")
        assert f" ({event.id}) was altered" in ended.stderr

    @pytest.mark.parametrize("field", ["actor", "target", "details"])
    async def test_part_that_is_no_document_is_only_another_content(self, jsonl: bytes, run: Run, field: str) -> None:
        ended = run(changed(jsonl, lambda rows: rows[3].update({field: "eve"})))

        assert ended.returncode == 1
        assert ended.stderr.startswith("FAULT: event 4 (")

    def test_line_that_is_deeper_than_can_be_read_is_a_fault(self, run: Run) -> None:
        ended = run(b'{"a":' * 100_000)

        assert (ended.returncode, ended.stderr) == (
            1,
            "FAULT: record 1 can't be read; the file was cut off or damaged there\n",
        )

    async def test_event_without_the_hash_before_it_is_no_sealed_one(self, jsonl: bytes, run: Run) -> None:
        def forge(rows: list[Raw]) -> None:
            del rows[3]["prev_hash"]
            rows[3]["hash"] = digest(rows[3])

        ended = run(changed(jsonl, forge))

        assert ended.stderr == "FAULT: record 4 is no sealed event\n"


class TestOptions:
    @pytest.mark.parametrize("anchor", ["5", "x:" + "0" * 64, "5:0"])
    def test_refuses_what_is_no_anchor(self, run: Run, anchor: str) -> None:
        assert run(b"", "--anchor", anchor).returncode == 2

    def test_says_when_there_is_no_file(self, run: Run, tmp_path: Path) -> None:
        ended = subprocess.run(  # noqa: S603
            [sys.executable, str(SCRIPT), str(tmp_path / "none")], capture_output=True, text=True, check=False
        )

        assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
        assert run is not None
