"""A transport for httpx that reaches public addresses only, for the requests that ask for that.

A name is looked up once, and the connection goes to the address that was found good: a second look-up could answer
differently. TLS still asks for the name.
"""

import asyncio
import socket
from collections.abc import Iterable
from functools import cache
from typing import Any, Final

import httpcore
import httpx

from app.core.network import is_public

GUARDED: Final = "guarded"  # the extension of a request that asks for it


class AddressRefusedError(Exception):
    """The name leads to no public address."""


class GuardingTransport(httpx.AsyncBaseTransport):
    """Two pools, so that a connection of the one kind is never lent to a request of the other."""

    def __init__(self, limits: httpx.Limits) -> None:
        self._open = httpx.AsyncHTTPTransport(verify=_tls(), trust_env=False, limits=limits)
        self._guarded = _PublicTransport(verify=_tls(), trust_env=False, limits=limits)
        self._guarded.use_pool(limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        transport = self._guarded if request.extensions.get(GUARDED) else self._open
        return await transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._open.aclose()
        await self._guarded.aclose()


class _PublicTransport(httpx.AsyncHTTPTransport):
    """httpx has no parameter for how connections are made; its pool has."""

    def use_pool(self, limits: httpx.Limits) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_tls(),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_PublicBackend(),
        )


class _PublicBackend(httpcore.AsyncNetworkBackend):
    def __init__(self) -> None:
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is the library's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first of the name's public addresses that takes it."""
        error: Exception = AddressRefusedError(f"{host} leads to no public address")
        for address in await _public_addresses(host, port, timeout):
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                error = failed
        raise error

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _public_addresses(host: str, port: int, seconds: float | None) -> list[str]:
    try:
        async with asyncio.timeout(seconds):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError as error:
        raise httpcore.ConnectTimeout from error
    except OSError as error:
        raise httpcore.ConnectError from error
    addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
    return [address for address in addresses if is_public(address)]


@cache
def _tls() -> Any:
    """Reading the certificates takes a while."""
    return httpx.create_ssl_context(trust_env=False)
