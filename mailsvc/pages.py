"""The pages of the ``http`` listener: the figures for Prometheus, liveness and readiness.

``/metrics`` is in the text format of Prometheus, or in OpenMetrics if the client prefers that.
``/healthz`` is 200 while the process that watches the others is alive, ``/readyz`` 200 when the
service can be given work, else 503 with the reason; ``/`` names these.  There is nothing in them
that names users or their addresses.

They are made in the reactor's thread, in some milliseconds.  The library's own resource for Twisted
would make them in a thread, and the supervisor, which forks, must not have any.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import Request

from mailsvc.figures import Spreading
from mailsvc.gathering import PREFIX, Family, Gathering
from mailsvc.web import Page, serving

_log = Logger("mailsvc")

_INDEX = b"""<!DOCTYPE html>
<title>mailsvc</title>
<h1>mailsvc</h1>
<ul>
<li><a href="/metrics">/metrics</a>: figures for Prometheus
<li><a href="/healthz">/healthz</a>: whether the service lives
<li><a href="/readyz">/readyz</a>: whether it can be given work
</ul>
"""


def site(gathering: Gathering, reactor: Any) -> Any:
    """The factory that shows the figures of *gathering*."""
    root = _Index()
    root.putChild(b"metrics", _Metrics(gathering))
    root.putChild(b"healthz", _Health())
    root.putChild(b"readyz", _Readiness(gathering))
    return serving(root, reactor)


class _Index(Page):
    def getChild(self, path: bytes, request: Request) -> Resource:
        return self if path == b"" and request.postpath == [] else super().getChild(path, request)

    def render_GET(self, request: Request) -> bytes:
        return self.answer(request, _INDEX, "text/html; charset=utf-8")


class _Health(Page):
    def render_GET(self, request: Request) -> bytes:
        return self.answer(request, b"ok\n")


class _Readiness(Page):
    def __init__(self, gathering: Gathering) -> None:
        super().__init__()
        self._gathering = gathering

    def render_GET(self, request: Request) -> bytes:
        reason = self._gathering.unready()
        return self.answer(request, f"{reason or 'ok'}\n".encode(), status=503 if reason else 200)


class _Metrics(Page):
    def __init__(self, gathering: Gathering) -> None:
        super().__init__()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(gathering))

    def render_GET(self, request: Request) -> bytes:
        encode, kind = choose_encoder(request.getHeader("accept") or "")
        try:
            content = encode(self._registry)
        except Exception:
            # Twisted would show where.
            _log.failure("the figures cannot be told")
            return self.answer(request, b"internal error; see the log\n", status=500)
        return self.answer(request, content, kind)


class _Collector(Collector):
    def __init__(self, gathering: Gathering) -> None:
        self._gathering = gathering

    def collect(self) -> Iterable[Metric]:
        return map(_metric, self._gathering.families())


def _metric(family: Family) -> Metric:
    name, sentence, labels = PREFIX + family.name, family.sentence, family.labels
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, sentence, labels=labels)
        for values, value in family.series:
            assert isinstance(value, Spreading)
            bounds = [*map(floatToGoString, value.bounds), "+Inf"]
            histogram.add_metric(values, list(zip(bounds, itertools.accumulate(value.counts),
                                                  strict=True)), value.sum)
        return histogram
    made = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(
        name, sentence, labels=labels)
    for values, value in family.series:
        made.add_metric(values, value)  # type: ignore[arg-type]
    return made
