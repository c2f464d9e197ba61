"""Make the collections and indexes: `python3 scripts/init_db.py`. Safe to repeat, also while the service runs."""

import environment


def main() -> None:
    environment.enter()
    import service  # noqa: PLC0415 - importable only inside the environment

    service.run(_report())


async def _report() -> None:
    """Make also what was dropped behind the service's back, and say what there is."""
    from app.db.mongo import get_database  # noqa: PLC0415
    from app.db.schema import DOCUMENT_MODELS, make_indexes  # noqa: PLC0415

    database = get_database()
    await make_indexes(database)
    for model in DOCUMENT_MODELS:
        collection = model.get_pymongo_collection()
        count = len(await collection.index_information())
        print(f"{collection.name}: {count} indexes")
    print(f"The database {database.name} is ready.")


if __name__ == "__main__":
    main()
