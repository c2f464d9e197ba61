"""Print fresh secrets for a `.env`: `python3 scripts/generate_secrets.py > .env.new`. Nothing is stored."""

import secrets

import environment


def main() -> None:
    environment.enter()
    import service  # noqa: F401, PLC0415 - makes `app` importable
    from cryptography.fernet import Fernet  # noqa: PLC0415

    from app.core import key_format  # noqa: PLC0415

    print(f"SECRET_KEY={secrets.token_urlsafe(48)}")
    print(f"ENCRYPTION_KEYS={Fernet.generate_key().decode()}")
    print(f"BACKUP_KEY={Fernet.generate_key().decode()}")
    print(f"BOOTSTRAP_TOKEN={secrets.token_urlsafe(32)}")
    print(f"MASTER_API_KEY={key_format.new_key().text}")


if __name__ == "__main__":
    main()
