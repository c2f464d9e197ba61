"""Back the database up, and get it back: `python3 scripts/backup_db.py backup|list|verify|restore`.

An archive holds every collection of the database as it was at one moment, in one file: compressed, with checksums, and
encrypted when BACKUP_KEY or BACKUP_KEY_FILE is set. It is in BACKUP_DIR, in a folder of your choice, or in the storage
account of uploads (`azure:`). Files of uploads are backed up apart from it. docs/backup.md has the drill.
"""

import argparse
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from pydantic import ValidationError
from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo.database import Database
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError
from rich.console import Console

from app.backup import restore, take
from app.backup.archive import Raw
from app.backup.errors import BackupError, FaultError
from app.backup.key import key_of
from app.backup.place import archive_of, place_of
from app.backup.progress import Progress
from app.core.config import Settings, faults_of
from app.core.version import VERSION
from app.db.embedded import EmbeddedServerError, embedded_server
from app.db.preflight import fault_of_url
from app.db.presence import BACKUP, MARK, RESTORE, database_of, shown_name

_out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, _end)
    try:
        options.work(options, Settings())
    except ValidationError as error:
        sys.exit(faults_of(error))
    except FaultError as error:
        sys.exit(f"FAULT: {error}")
    except (BackupError, EmbeddedServerError) as error:
        sys.exit(str(error))
    except PyMongoError as error:
        sys.exit(f"The database does not do it: {_told(error)}")
    except KeyboardInterrupt:
        sys.exit("Interrupted.")


def _back_up(options: argparse.Namespace, settings: Settings) -> None:
    place, key = place_of(options.to, settings), key_of(settings)
    with _connected(settings, BACKUP) as database:
        taken = take.back_up(database, place, key, Progress())
    _out.print(taken.name)
    _out.print(f"{_counts(taken.contents.documents)}, {'not ' if key is None else ''}encrypted.")
    _out.print(f"Checksum: {taken.checksum}")
    if options.keep:  # whatever becomes of that, what was made is told
        for name in take.remove_older(place, taken.name, database.name, keep=options.keep):
            _out.print(f"Removed: {name}")


def _list(options: argparse.Namespace, settings: Settings) -> None:
    for name, size, head, fault in take.listed(place_of(options.place, settings)):
        if head is None:
            _out.print(f"{name}  {size} bytes  {fault}")
            continue
        collections = len(head["collections"])
        _out.print(
            f"{name}  {head['at']}  {size} bytes  {collections} collections  by {head['made_by']}  {_encryption(head)}"
        )


def _verify(options: argparse.Namespace, settings: Settings) -> None:
    faults: list[str] = []
    read = restore.verify(archive_of(options.archive, settings), key_of(settings), faults.append, Progress())
    for fault in faults:
        _out.print(f"FAULT: {fault}")
    if faults:
        sys.exit(f"{len(faults)} faults: this archive can't be restored.")
    for name, count in read.contents.documents.items():
        _out.print(f"{name}: {count}")
    counts = _counts(read.contents.documents)
    _out.print(f"{counts} of {read.head['at']}, by {read.head['made_by']}, {_encryption(read.head)}: whole.")
    _out.print(f"Checksum: {read.checksum}")


def _restore(options: argparse.Namespace, settings: Settings) -> None:
    mark = f"{MARK}{secrets.token_hex(4)}"
    with _connected(settings, RESTORE, mark=mark, name=options.to_database) as database:
        own_name = shown_name(RESTORE, database.name) + mark
        alone = _unasked if options.service_is_stopped else restore.alone_in(database, own_name)
        if options.discard:
            alone()
            restore.discard(database)
            _out.print(f"Nothing is left of a restore; {database.name} is as it was.")
        elif options.resume:
            _out.print(f"{database.name} is what {restore.resume(database, alone)} holds.")
        else:
            archive = archive_of(options.archive, settings)
            contents = restore.restore(
                database,
                archive,
                key_of(settings),
                may_replace=options.replace,
                require_alone=alone,
                progress=Progress(),
            )
            _out.print(f"{database.name} is what {archive.name} holds: {_counts(contents.documents)}.")


@contextmanager
def _connected(settings: Settings, kind: str, *, mark: str = "", name: str | None = None) -> Iterator[Database[Raw]]:
    with ExitStack() as stack:
        url = settings.database_url.get_secret_value()
        if settings.is_embedded:
            url = stack.enter_context(embedded_server(settings.data_dir, settings.mongod_path))
        elif fault := fault_of_url(url):
            raise BackupError(fault)
        name = name or database_of(url)
        shown = shown_name(kind, name) + mark
        client = stack.enter_context(MongoClient[Raw](url, appname=shown, serverSelectionTimeoutMS=10_000))
        # What was acknowledged is on the primary for certain, and what is written is to outlive one.
        yield client.get_database(
            name,
            read_preference=ReadPreference.PRIMARY,
            write_concern=WriteConcern("majority", j=True),
        )


def _unasked() -> None:
    """Who is at work on the database, the operator has looked at."""


def _counts(documents: dict[str, int]) -> str:
    return f"{len(documents)} collections, {sum(documents.values())} documents"


def _encryption(head: Raw) -> str:
    encrypted = head["encryption"]
    return "not encrypted" if encrypted is None else f"encrypted under the key {encrypted['key']}"


def _told(error: PyMongoError) -> str:
    """Without what stands in documents, which some errors repeat."""
    if isinstance(error, BulkWriteError):
        return f"writing failed with the code {(error.details['writeErrors'] or [{}])[0].get('code')}."
    if isinstance(error, OperationFailure):
        return f"{(error.details or {}).get('codeName')} ({error.code})."
    return str(error)


def _end(_signal: int, _frame: FrameType | None) -> None:
    """End as if interrupted, so that what was begun is removed."""
    raise KeyboardInterrupt


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="backup_db.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(required=True, metavar="backup|list|verify|restore")

    backup = commands.add_parser("backup", help="write an archive, also while the service runs")
    backup.add_argument("--to", metavar="PLACE", help="a folder, or azure: (default: BACKUP_DIR)")
    backup.add_argument("--keep", type=_positive, metavar="N", help="then remove all of this database but the latest N")
    backup.set_defaults(work=_back_up)

    list_ = commands.add_parser("list", help="show the archives that there are")
    list_.add_argument("place", nargs="?", help="a folder, or azure: (default: BACKUP_DIR)")
    list_.set_defaults(work=_list)

    verify = commands.add_parser("verify", help="read an archive, and name everything that is wrong with it")
    verify.add_argument("archive", help="a file, the name of one in BACKUP_DIR, or azure:NAME")
    verify.set_defaults(work=_verify)

    _add_restore(
        commands.add_parser("restore", help="make the database what an archive holds; stop the service before")
    )
    return parser.parse_args()


def _add_restore(command: argparse.ArgumentParser) -> None:
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("archive", nargs="?", help="a file, the name of one in BACKUP_DIR, or azure:NAME")
    what.add_argument("--resume", action="store_true", help="finish a restore that was cut off")
    what.add_argument("--discard", action="store_true", help="remove what a restore left that had replaced nothing yet")
    command.add_argument("--replace", action="store_true", help="replace what is in the database")
    command.add_argument(
        "--to-database", type=_name, metavar="NAME", help="another database on the same server, for a look"
    )
    command.add_argument(
        "--service-is-stopped", action="store_true", help="do not look for services, where that is not allowed"
    )
    command.set_defaults(work=_restore)


def _name(text: str) -> str:
    if not text:  # as of a variable that is not set; it must not stand for the database of the service
        raise argparse.ArgumentTypeError("must not be empty")
    if text in {"admin", "config", "local"}:
        raise argparse.ArgumentTypeError("that one belongs to the server")
    return text


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    main()
