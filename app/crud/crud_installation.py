"""Facts that hold once for the whole database."""

from pymongo.errors import DuplicateKeyError

from app.models.installation import Installation


async def mark_once(fact: str) -> bool:
    """Record that it has happened. False when it had before; inside a transaction, leave it then."""
    try:
        await Installation(id=fact).insert()
    except DuplicateKeyError:
        return False
    return True
