"""A DNS server on loopback that says what a test wants."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Any

from twisted.names import dns

#: The type of TLSA records, which twisted.names does not know.
_TLSA = 52


class NameServer:
    """Answers over UDP; use as a context manager.

    A name without records does not exist.  Its zone may be changed at any time.

    :param zone: name -> records, as ``"MX 10 mx.b.example"``, ``"A 127.0.0.1"``,
        ``"AAAA ::1"``, ``"CNAME b.example"`` (followed for eight steps), ``"ALIAS b.example"`` (a
        CNAME that is not), ``"TXT text"``, ``"PTR a.example"``, ``"SRV 0 1 995 a.example"``,
        ``"TLSA 3 1 1 …"``; "SECURE" to say that they are validated, to who asks; or "SERVFAIL", or
        "SILENCE" for no answer at all.
    :ivar address: where it is, ``host:port``.
    :ivar asked: the names and types that were asked for.
    """

    def __init__(self, zone: dict[str, list[str]], port: int = 0) -> None:
        self.zone = zone
        self.asked: list[tuple[str, int]] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", port))
        self.address = "{}:{}".format(*self._socket.getsockname())
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        # An empty datagram ends it.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            packet, client = self._socket.recvfrom(4096)
            if not packet:
                return
            answer = self._answer(packet)
            if answer is not None:
                self._socket.sendto(answer, client)

    def _answer(self, packet: bytes) -> bytes | None:
        message = dns.Message()
        message.fromStr(packet)
        query = message.queries[0]
        name = query.name.name.decode().lower().rstrip(".")
        self.asked.append((name, query.type))
        message.answer, message.recAv = 1, 1
        records = self.zone.get(name)
        message.authenticData = int(bool(message.authenticData) and self._is_secure(name))
        if records is None:
            message.rCode = dns.ENAME
        elif "SILENCE" in records:
            return None
        elif "SERVFAIL" in records:
            message.rCode = dns.ESERVER
        else:
            self._add(message, name, query.type, records)
        return message.toStr()

    def _is_secure(self, name: str) -> bool:
        """Whether all behind *name* is; what does not exist is where anything above it is."""
        records = self.zone.get(name)
        if records is None:
            return "." in name and self._is_secure(name.partition(".")[2])
        targets = [each.partition(" ")[2] for each in records if each.startswith("CNAME ")]
        return "SECURE" in records and all(map(self._is_secure, targets))

    def _add(self, message: Any, name: str, kind: int, records: list[str]) -> None:
        for record in records:
            word, _, rest = record.partition(" ")
            if word == "ALIAS":
                self._put(message, name, dns.CNAME, dns.Record_CNAME(rest))
            elif word == "CNAME":
                self._put(message, name, dns.CNAME, dns.Record_CNAME(rest))
                if len(message.answers) < 8:
                    self._add(message, rest, kind, self.zone.get(rest, []))
            elif word == "MX" and kind == dns.MX:
                preference, exchanger = rest.split(" ")
                self._put(message, name, kind, dns.Record_MX(
                    int(preference), exchanger.rstrip(".").encode()))
            elif word == "A" and kind == dns.A:
                self._put(message, name, kind, dns.Record_A(rest))
            elif word == "AAAA" and kind == dns.AAAA:
                self._put(message, name, kind, dns.Record_AAAA(rest))
            elif word == "PTR" and kind == dns.PTR:
                self._put(message, name, kind, dns.Record_PTR(rest.rstrip(".")))
            elif word == "SRV" and kind == dns.SRV:
                priority, weight, port, host = rest.split(" ")
                self._put(message, name, kind, dns.Record_SRV(
                    int(priority), int(weight), int(port), host.rstrip(".").encode()))
            elif word == "TLSA" and kind == _TLSA:
                usage, selector, matching, data = rest.split(" ")
                self._put(message, name, kind, dns.UnknownRecord(
                    bytes(map(int, (usage, selector, matching))) + bytes.fromhex(data)))
            elif word == "TXT" and kind == dns.TXT:
                self._put(message, name, kind, dns.Record_TXT(*(
                    rest[at:at + 255].encode() for at in range(0, len(rest), 255))))

    def _put(self, message: Any, name: str, kind: int, record: Any) -> None:
        message.answers.append(dns.RRHeader(name, kind, dns.IN, 60, record))
