"""IP addresses and networks, in the one form in which they are compared.

An IPv4 address that is dressed as IPv6 (``::ffff:192.0.2.7``, RFC 4291 §2.5.5.2) is the IPv4
address: a client of that address connects as the one or the other, depending on the listener.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: What all mapped addresses begin with, and how long that is.
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def address_of(text: str | bytes) -> Address:
    """The address that *text*, or its octets, are.

    :raises ValueError: they are none.
    """
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def network_of(text: str) -> Network:
    """The network that *text* names: in CIDR form, or a single address.

    :raises ValueError: it names none.
    """
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        return ipaddress.IPv4Network((network.network_address.packed[-4:],
                                      network.prefixlen - _MAPPED.prefixlen))
    return network
