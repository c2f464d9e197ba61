"""Client addresses: which one to believe, and whether it is in a list."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_DOTS_OF_IPV4: Final = 3
_CUSTOMER_PREFIX: Final = 64
_MAPPED_PREFIX: Final = 96  # ::ffff:0:0/96 holds the IPv4 addresses
_NAT64: Final = IPv6Network("64:ff9b::/96")
_UNICAST: Final = IPv6Network("2000::/3")  # all that was ever given out; the rest has local and forgotten uses


def parse_address(text: str) -> Address | None:
    """An address, an IPv4-mapped IPv6 one as its IPv4; none when the text is no address."""
    try:
        address = ip_address(text.strip())
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def parse_network(text: str) -> Network:
    """An address or CIDR block, a mapped one as its IPv4 block. Anything else is a `ValueError`."""
    network = ip_network(text.strip(), strict=False)
    if not isinstance(network, IPv6Network) or network.prefixlen < _MAPPED_PREFIX:
        return network
    mapped = network.network_address.ipv4_mapped
    return IPv4Network((mapped, network.prefixlen - _MAPPED_PREFIX)) if mapped else network


@lru_cache(maxsize=1024)
def _networks(blocks: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(parse_network(block) for block in blocks)


def are_within(blocks: Iterable[str], outer: Iterable[str]) -> bool:
    """Whether each of the blocks lies in one of the outer ones."""
    around = _networks(tuple(outer))
    return all(any(_lies_in(block, network) for network in around) for block in _networks(tuple(blocks)))


def _lies_in(block: Network, network: Network) -> bool:
    return (
        block.version == network.version and block.network_address in network and block.prefixlen >= network.prefixlen
    )


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine itself."""
    address = parse_address(host)
    return address.is_loopback if address else f".{host.rstrip('.').lower()}".endswith(".localhost")


def is_public(text: str) -> bool:
    """Whether an address is one of the internet, also where IPv6 carries an address of IPv4 inside."""
    address = parse_address(text)
    if address is None or address.is_multicast:
        return False
    if isinstance(address, IPv6Address) and (inner := _carried(address)):
        return is_public(str(inner))
    return address.is_global and (isinstance(address, IPv4Address) or address in _UNICAST)


def _carried(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a gateway would send it on to: of 6to4, which some releases call global, and of NAT64.

    Teredo carries one too, and is global for none.
    """
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address.sixtofour


def is_base_url(text: str) -> bool:
    """Whether it is a URL of HTTP to which a path can be added, and that holds no secret."""
    try:
        parts = urlsplit(text)
        port, has_more = parts.port, parts.query or parts.fragment or "@" in parts.netloc or "?" in text or "#" in text
    except ValueError:
        return False
    is_plain = text.isascii() and text.isprintable() and " " not in text
    return is_plain and parts.scheme in {"http", "https"} and bool(parts.hostname) and port != 0 and not has_more


def is_in(address: str | None, blocks: Iterable[str]) -> bool:
    """Whether the address lies in one of the blocks. What is no address lies nowhere."""
    parsed = parse_address(address) if address else None
    return parsed is not None and any(
        parsed.version == network.version and parsed in network for network in _networks(tuple(blocks))
    )


@lru_cache(maxsize=4096)
def household(address: str | None) -> str:
    """Whom an address counts as where requests are counted: itself, or the /64 of an IPv6 address.

    That is the least that one customer is given: by address it would have 2^64 budgets.
    """
    parsed = parse_address(address) if address else None
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((int(parsed), _CUSTOMER_PREFIX), strict=False))
    return str(parsed) if parsed else address or "unknown"


def client_address(peer: str | None, forwarded_for: str | None, trusted_proxies: Iterable[str]) -> str | None:
    """The client's address: the socket's peer, unless that is a trusted proxy.

    Behind trusted proxies it is the last entry of `X-Forwarded-For` that no trusted proxy wrote; entries
    to the left of it are the client's own word and count for nothing. None when that entry is no address.
    """
    trusted = tuple(trusted_proxies)
    if forwarded_for is None or not trusted or not is_in(peer, trusted):
        return _plain(peer)
    for hop in reversed(forwarded_for.split(",")):
        peer = _without_port(hop)
        if parse_address(peer) is None:
            return None  # never the proxy's own address in place of one that can't be read
        if not is_in(peer, trusted):
            break
    return _plain(peer)


def _without_port(hop: str) -> str:
    """Some proxies write `192.0.2.7:1234` or `[2001:db8::7]:1234`."""
    hop = hop.strip()
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    address, _, port = hop.rpartition(":")
    return address if port.isdigit() and address.count(".") == _DOTS_OF_IPV4 and ":" not in address else hop


@lru_cache(maxsize=4096)
def _plain(text: str | None) -> str | None:
    address = parse_address(text) if text else None
    return str(address) if address else text
