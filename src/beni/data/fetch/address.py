"""Which addresses pictures may be fetched from: what is checked is what is connected to.

A URL comes from whoever wrote the data set. Without this it could make a run read from the services of the machine or
of its network (server-side request forgery), by a name that resolves to them or by an address in an odd spelling.
Literal addresses are refused before a request and names when they are resolved; whatever slips past both, by a spelling
that this file reads in another way than the client does, meets ``open_socket``.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import aiohttp
from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Allows = Callable[[Address], bool]

GLOBAL = ipaddress.IPv6Network("2000::/3")
"""What is given to hosts of the public internet (RFC 4291); ``is_global`` also holds for ranges given to nobody."""
HOLDS_IPV4 = (
    (ipaddress.IPv6Network("::/96"), 0),  # compatible, and the loopback and unspecified addresses
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # mapped
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),  # translated (SIIT)
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4
)
"""Networks whose addresses lead to an IPv4 address within them, and the bits to the right of it."""


class PrivateAddress(OSError):
    """No address of a host may be connected to."""


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, in whichever way it is written."""
    if isinstance(address, ipaddress.IPv6Address):
        for network, shift in HOLDS_IPV4:
            if address in network:
                return is_public(ipaddress.IPv4Address(int(address) >> shift & 0xFFFFFFFF))
        if address not in GLOBAL:
            return False
    return address.is_global and not address.is_multicast


def any_address(address: Address) -> bool:
    """For ``images.private_addresses=true``."""
    return True


def literal_address(host: str) -> Address | None:
    """The address that a URL names itself, which no resolver ever sees; None for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def open_socket(allows: Allows, info: AddrInfoType) -> socket.socket:
    """The socket that is about to be connected.

    Raises:
        PrivateAddress: when its address is not allowed, or is in a form that only the system could read.
    """
    family, kind, protocol, _, where = info
    address = literal_address(str(where[0]))
    if address is None or not allows(address):
        raise PrivateAddress("the address is private")
    return socket.socket(family, kind, protocol)


class CheckedResolver(AbstractResolver):
    """Name -> those of its addresses that are allowed."""

    def __init__(self, allows: Allows) -> None:
        self.allows, self.inner = allows, aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self.inner.resolve(host, port, family)
        allowed = [one for one in found if self.allows(ipaddress.ip_address(one["host"].partition("%")[0]))]
        if not allowed:
            raise PrivateAddress(f"{host} has a private address")
        return allowed

    async def close(self) -> None:
        await self.inner.close()
