"""The forms that some settings have."""

import re
from typing import Annotated

from pydantic import AfterValidator, SecretStr

from app.core.network import is_base_url, parse_network
from app.core.rate_limit import is_rate


def _rate(value: str) -> str:
    if not is_rate(value):
        raise ValueError("must be a rate, such as 600/minute")
    return value


def _networks(value: tuple[str, ...]) -> tuple[str, ...]:
    for block in value:
        parse_network(block)
    return value


def _database_url(value: SecretStr) -> SecretStr:
    if not re.match(r"embedded$|mongodb(\+srv)?://", value.get_secret_value()):
        raise ValueError("must be `embedded` or start with mongodb:// or mongodb+srv://")
    return value


def _base_url(value: str) -> str:
    if not is_base_url(value):
        raise ValueError("must be http(s)://host/path, without a user, a query or a fragment")
    return value


Rate = Annotated[str, AfterValidator(_rate)]
Networks = Annotated[tuple[str, ...], AfterValidator(_networks)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
