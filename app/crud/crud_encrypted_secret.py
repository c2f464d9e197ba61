"""The authenticators' secrets, wherever they are held: how they are found, and encrypted anew."""

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from bson import ObjectId

from app.crud.base import ASCENDING
from app.db.mongo import get_database
from app.models.user import BEGINNING


class Place(NamedTuple):
    """An authenticator in the documents of a collection, and the time in it by which an index finds it."""

    collection: str
    field: str
    time: str


# One that is confirmed meanwhile moves on, so it is met in the second if not in the first.
OF_USERS: Final = (Place("users", "pending_mfa", "created_at"), Place("users", "mfa", "confirmed_at"))
OF_DELETED_USERS: Final = tuple(Place("deleted_users", f"user.{place.field}", place.time) for place in OF_USERS)


async def walk(place: Place) -> AsyncIterator[tuple[ObjectId, bytes]]:
    """All that are held there, the oldest first, with the user's id."""
    time = f"{place.field}.{place.time}"
    found = get_database()[place.collection].find(
        {time: {"$gt": BEGINNING}}, {"sealed": f"${place.field}.encrypted_secret"}, sort=[(time, ASCENDING)]
    )
    async for row in found:
        yield row["_id"], row["sealed"]


async def replace(place: Place, user_id: ObjectId, old: bytes, new: bytes) -> None:
    """Unless it was changed meanwhile."""
    sealed = f"{place.field}.encrypted_secret"
    await get_database()[place.collection].update_one({"_id": user_id, sealed: old}, {"$set": {sealed: new}})
