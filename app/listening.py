"""Sockets that the gateway listens on."""

from __future__ import annotations

import socket

from cynosure.addresses import host_and_port


class CannotListen(Exception):
    """The address can't be listened on; the message names it and says why."""


def listening(host: str, port: int, *, shared: bool = False, options: str = "--host or --port") -> list[socket.socket]:
    """Bind a socket to every address of `host`. `options` are those that choose another, for the message.

    Programs that all bind the port as `shared` get connections in turn (on Linux; elsewhere mostly one of them).

    Raises:
        CannotListen: the port is taken, or the host is none of this machine's.
    """
    opened: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            opened.append(socket.socket(family, kind, protocol))
            opened[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                opened[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                opened[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # 0.0.0.0 may be another's
            opened[-1].bind(address)
    except (OSError, UnicodeError) as error:
        for one in opened:
            one.close()
        reason = getattr(error, "strerror", None) or error
        raise CannotListen(
            f"can't listen on {host_and_port(host, port)}: {reason}. Choose another address with {options}."
        ) from None
    return opened
