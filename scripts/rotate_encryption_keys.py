"""Encrypt again what is encrypted, under the first of `ENCRYPTION_KEYS`: `python3 scripts/rotate_encryption_keys.py`.

1. Put a new key before the old one (`python3 scripts/generate_secrets.py` prints one) and restart the service.
2. Run this, also while the service runs. It can be repeated, and goes on where it was stopped.
3. Take the old key away and restart.
"""

import environment


def main() -> None:
    environment.enter()
    import service  # noqa: PLC0415 - importable only inside the environment

    service.run(_rotate())


async def _rotate() -> None:
    from app.services import mfa_service  # noqa: PLC0415

    print(f"{await mfa_service.encrypt_again()} secrets are under the first key now.")


if __name__ == "__main__":
    main()
