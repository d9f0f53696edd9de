"""Mail that leaves by DANE with a resolver that does validate: unbound, over zones signed here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.net import QUICK, Net, returned
from tests.relay import mail, queued, relaying, submit, until
from tests.test_relay_dane import STRANGER, tlsa
from tests.unbound import Unbound


@pytest.mark.slow
def test_signed_zones(tmp_path: Path, program: Callable[[str], str]) -> None:
    """By which zone what arrives, and how."""
    with ExitStack() as stack:
        net = Net(stack, tmp_path)
        zones: dict[str, list[str]] = {}
        names = ("good", "wrong", "none", "forged", "unsigned")
        for name in names:
            in_clear = name in ("none", "unsigned")
            exchanger = net.exchanger(f"mx.{name}.example",
                                      certified=None if in_clear else "x.example")
            certificate = (net.issued[f"mx.{name}.example"].certificate
                           if name in ("good", "forged") else STRANGER)
            zones[f"{name}.example"] = [
                "@ MX 10 mx", f"mx A {exchanger.address}",
                *([f"_{net.port}._tcp.mx {tlsa(3, 1, 1, certificate)}"]
                  if name != "none" else [])]
        resolver = stack.enter_context(Unbound(
            program, tmp_path / "unbound", zones,
            signed=("good.example", "wrong.example", "none.example"), forged=("forged.example",)))
        service = stack.enter_context(relaying(
            tmp_path / "a", f'relay.dns=["{resolver.address}"]', f"relay.port={net.port}",
            *QUICK))
        for name in names:
            submit(service, [f"bob@{name}.example"])
        until(lambda: not queued(service), service, 90)
        log = service.log.read_text()
        taken = {name: [each[3] for each in net.exchangers[f"mx.{name}.example"].messages]
                 for name in names}
        assert taken == {"good": [True], "wrong": [], "none": [False], "forged": [],
                         "unsigned": [False]}, log
        told = returned(service)
        assert "no certificate of the server matches" in told["bob@wrong.example"][1]
        assert "name servers cannot tell about forged.example" in told["bob@forged.example"][1]
        assert len(mail(service)) == 2
