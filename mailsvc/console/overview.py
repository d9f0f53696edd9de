"""How the service is: figures, small graphs, listeners, certificates, disks; for administrators.

The figures are those of ``mailsvc stats``, asked of whoever watches the service by the same socket,
so that every worker shows the same.
"""

from __future__ import annotations

import time
from typing import Any

from mailsvc.console import graphs
from mailsvc.console.call import Answer, Call, Page
from mailsvc.history import EVERY
from mailsvc.localsocket import NoService
from mailsvc.monitor import ask

#: The graphs, by the curves of :mod:`mailsvc.history`, with what is counted in them.
GRAPHS = {
    "sessions": "Sessions", "accepted": "Messages accepted", "refused": "Recipients refused",
    "relayed": "Delivered", "fetched": "Messages fetched", "logins": "Logins",
    "logins_failed": "Failed logins", "connections": "Open connections", "queue": "In the queue",
}

#: What is told in numbers: a figure of ``mailsvc stats``, and the labels that it has to have.
TILES: dict[str, tuple[str, dict[str, str]]] = {
    "Sessions": ("sessions_total", {}),
    "Open connections": ("connections", {}),
    "Logins": ("logins_total", {"outcome": "succeeded"}),
    "Failed logins": ("logins_total", {"outcome": "failed"}),
    "Messages accepted": ("messages_accepted_total", {}),
    "Recipients refused": ("recipients_refused_total", {}),
    "In the queue": ("queue_messages", {}),
    "Oldest in the queue": ("queue_oldest_age_seconds", {}),
    "Delivered elsewhere": ("deliveries_total", {"outcome": "relayed"}),
    "Messages fetched": ("messages_fetched_total", {}),
    "Banned networks": ("bans", {}),
}

#: What recipients are refused for, by the class and subject of the enhanced status (RFC 3463 §3).
REASONS = {
    "4.2": "the mailbox, for now", "4.3": "the service itself, for now",
    "4.7": "a rule, for now", "5.1": "the address", "5.2": "the mailbox",
    "5.3": "the service itself", "5.4": "the way there",
    "5.7": "a rule: relaying, a sender, a login",
}

Told = dict[str, Any]


async def show(call: Call) -> Answer:
    """Everything at one look."""
    try:
        told = await call.backend.threads.run(ask, call.backend.data)
    except NoService as problem:
        return Page("problem.html", {"problem": str(problem)}, 503)
    figures = {each["name"].removeprefix("mailsvc_"): each["samples"] for each in told["figures"]}
    curves = told["history"]["curves"]
    rows = max(map(len, curves.values()))
    return Page("overview.html", {
        "ready": told["ready"], "unready": told["unready"],
        "since": _sum(figures, "start_time_seconds"), "now": time.time(),
        "tiles": [(title, _sum(figures, name, **labels), name.endswith("_seconds"))
                  for title, (name, labels) in TILES.items()],
        "graphs": [(title, graphs.Graph.of(curves[name])) for name, title in GRAPHS.items()],
        # A line has two ends.
        "minutes": max(1, round(EVERY * rows / 60)) if rows > 1 else 0,
        "listeners": call.backend.listening(), "workers": _sum(figures, "workers"),
        "certificates": sorted(
            (each["value"], each["labels"]["certificate"])
            for each in figures.get("certificate_expiry_timestamp_seconds", ())),
        "refusals": _refusals(figures), "states": _states(figures),
        "disks": _disks(figures), "version": _version(figures)})


def _sum(figures: Told, name: str, **labels: str) -> float:
    return float(sum(each["value"] for each in figures.get(name, ())
                     if labels.items() <= each["labels"].items()))


def _refusals(figures: Told) -> list[tuple[float, str, str]]:
    """How many recipients were refused, by which code, and for what; the most first."""
    found: dict[tuple[str, str], float] = {}
    for each in figures.get("recipients_refused_total", ()):
        labels = each["labels"]
        key = labels["code"], labels["status"]
        found[key] = found.get(key, 0) + each["value"]
    return sorted(((count, code if status == code else f"{code} {status}", REASONS.get(
        status, "something else")) for (code, status), count in found.items() if count),
        reverse=True)


def _states(figures: Told) -> list[tuple[str, float]]:
    """How many messages of the queue are in which state."""
    return [(each["labels"]["state"], each["value"])
            for each in figures.get("queue_messages", ())]


def _disks(figures: Told) -> list[tuple[str, float, float]]:
    """Of each place: its name, free and all octets."""
    free = {each["labels"]["place"]: each["value"] for each in figures.get("disk_free_bytes", ())}
    return [(each["labels"]["place"], free.get(each["labels"]["place"], 0), each["value"])
            for each in figures.get("disk_size_bytes", ()) if each["value"]]


def _version(figures: Told) -> dict[str, str]:
    found: dict[str, str] = figures["build_info"][0]["labels"]
    return found
