"""Purge the deleted accounts that are due: `python3 scripts/purge_deleted.py`, also while the service runs.

The service does this by itself. `--list` shows what is due and changes nothing.
"""

import argparse
import sys

import environment


def main() -> None:
    environment.enter()
    import service  # noqa: PLC0415 - importable only inside the environment

    service.run(_list() if _options().list else _purge())


async def _list() -> None:
    from app.core.clock import utc_now  # noqa: PLC0415
    from app.crud import crud_deleted_user  # noqa: PLC0415

    async for archived in crud_deleted_user.due(at=utc_now()):
        state = "being purged" if archived.purge_started_at else "due"
        print(f"{archived.id} {archived.user['email']} deleted {archived.deleted_at:%Y-%m-%d %H:%M} UTC, {state}")


async def _purge() -> None:
    from app.services import purge_service  # noqa: PLC0415

    purged, interrupted = await purge_service.purge_due()
    print(f"Purged: {purged}.")
    if interrupted:
        sys.exit(f"Interrupted: {interrupted}. The service or the next call goes on with them; the log says why.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show what is due, and purge nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
