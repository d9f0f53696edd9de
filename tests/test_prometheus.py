"""etc/prometheus-rules.yml, etc/grafana-dashboard.json: judged by promtool and a real Prometheus.

Each alert is shown figures over which it has to fire, and figures over which it must not; what
dashboard and rules ask for, Prometheus has to find among what a running service tells.
"""

from __future__ import annotations

import itertools
import json
import re
import smtplib
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from twisted.internet.task import Clock

from mailsvc import figures
from mailsvc.figures import Figures, Share
from mailsvc.observer import Observer
from tests.daemons import free_port, wait_for
from tests.service import PATIENCE, Service, fetch, submit

ROOT = Path(__file__).parent.parent
RULES = ROOT / "etc" / "prometheus-rules.yml"
DASHBOARD: dict[str, Any] = json.loads((ROOT / "etc" / "grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
#: Title, query and legend.
QUERIES = [(panel["title"], target["expr"], target["legendFormat"])
           for panel in PANELS for target in panel["targets"]]
QUERIES += [(each["name"], each["expr"], each["textFormat"])
            for each in DASHBOARD["annotations"]["list"]]

# ---- alerts, by promtool ------------------------------------------------------------------------

DAY = 1440


class Case(NamedTuple):
    """Figures over time, a sample each minute, in promtool's notation; and what follows.

    :ivar fires: whether the alert does, *minutes* after the first sample.
    """

    alert: str
    fires: bool
    minutes: int
    series: dict[str, str]


def deliveries(**each: str) -> dict[str, str]:
    return {f'deliveries_total{{outcome="{outcome}"}}': each.get(outcome, "0x200")
            for (outcome,) in figures.DELIVERIES.values}


def logins(failed: str, succeeded: str) -> dict[str, str]:
    return {f'logins_total{{protocol="{protocol}",mechanism="PLAIN",outcome="{outcome}"}}': values
            for protocol in ("pop3", "submission")
            for outcome, values in (("failed", failed), ("succeeded", succeeded))}


def slow(name: str, quick: int, all: int) -> dict[str, str]:
    """So many a minute of a histogram were within .1, and so many there were."""
    return {f'{name}_bucket{{le="{bound}"}}': f"0+{count}x60"
            for bound, count in (("0.1", quick), ("5", all), ("+Inf", all))}


def disk(free: str) -> dict[str, str]:
    return {'disk_free_bytes{place="mail"}': free, 'disk_size_bytes{place="mail"}': "1000x500"}


def queue(active: str, waiting: str, held: str, age: str = "0x200") -> dict[str, str]:
    return {**{f'queue_messages{{state="{state}"}}': values for state, values in (
        ("active", active), ("waiting", waiting), ("held", held))}, "queue_oldest_age_seconds": age}


def webhooks(waiting: str, told: str) -> dict[str, str]:
    return {"webhook_events_waiting": waiting, 'webhook_attempts_total{outcome="told"}': told,
            'webhook_attempts_total{outcome="put off"}': "0+1x100"}


CERTIFICATE = 'certificate_expiry_timestamp_seconds{certificate="/a.pem"}'
REFUSED = 'recipients_refused_total{protocol="smtp",code="550",status="5.1"}'
SUBMITTED = 'recipients_accepted_total{protocol="submission"}'
NOT_STORED = 'messages_not_accepted_total{protocol="smtp",reason="not stored"}'

CASES = [
    Case("MailsvcAbsent", True, 40, {"ready": "1x30 stale _x30"}),
    Case("MailsvcAbsent", True, 10, {"other": "1x60"}),
    Case("MailsvcAbsent", False, 33, {"ready": "1x30 stale _x30"}),
    Case("MailsvcAbsent", False, 40, {"ready": "0x60"}),
    Case("MailsvcNotReady", True, 13, {"ready": "1x10 0x10"}),
    Case("MailsvcNotReady", False, 12, {"ready": "1x10 0x10"}),
    Case("MailsvcNotReady", False, 20, {"ready": "1x10 0 1x20"}),
    Case("MailsvcWorkerStuck", True, 5, {'process_silence_seconds{process="worker-0"}': "20+60x5"}),
    Case("MailsvcWorkerStuck", False, 5, {'process_silence_seconds{process="worker-0"}': "1x9"}),
    Case("MailsvcWorkersDie", True, 40, {"worker_restarts_total": "0x20 1 2 3 4 5 5x60"}),
    Case("MailsvcWorkersDie", False, 40, {"worker_restarts_total": "0x20 1x60"}),
    Case("MailsvcReloadRefused", True, 30, {'reloads_total{outcome="failed"}': "0x20 1x20"}),
    Case("MailsvcReloadRefused", False, 50, {'reloads_total{outcome="failed"}': "0x20 1x60"}),
    Case("MailsvcReloadRefused", False, 30, {'reloads_total{outcome="done"}': "0x20 1x20"}),
    Case("MailsvcReactorLag", True, 40, slow("reactor_lag_seconds", 90, 100)),
    Case("MailsvcReactorLag", False, 40, slow("reactor_lag_seconds", 100, 100)),
    Case("MailsvcConnectionsRefused", True, 60,
         {'connections_refused_total{protocol="smtp"}': "0+10x60",
          'connections_refused_total{protocol="pop3"}': "0+10x60"}),
    Case("MailsvcConnectionsRefused", False, 60,
         {'connections_refused_total{protocol="smtp"}': "0+2x60"}),
    Case("MailsvcNotStored", True, 25, {NOT_STORED: "0x20 1x20"}),
    Case("MailsvcNotStored", False, 25, {
        NOT_STORED: "0x40", 'messages_not_accepted_total{protocol="smtp",reason="dropped"}':
        "0+5x40"}),
    Case("MailsvcCommitSlow", True, 40, slow("commit_seconds", 90, 100)),
    Case("MailsvcCommitSlow", False, 40, slow("commit_seconds", 100, 100)),
    Case("MailsvcCommitSlow", False, 40, slow("commit_seconds", 0, 0)),
    Case("MailsvcJournalBacklog", True, 10, {"journal_backlog_bytes": "30000000x20"}),
    Case("MailsvcJournalBacklog", False, 10, {"journal_backlog_bytes": "30000000 0x20"}),
    Case("MailsvcDiskFillsSoon", True, 460, disk("480-0.5x460")),
    Case("MailsvcDiskFillsSoon", False, 460, disk("250x460")),
    Case("MailsvcDiskFillsSoon", False, 60, disk("900-0.8x460")),
    Case("MailsvcDiskFull", True, 10, disk("49x20")),
    Case("MailsvcDiskFull", False, 10, disk("51x20")),
    Case("MailsvcFilesEnd", True, 10, {'disk_free_files{place="mail"}': "19000x20"}),
    Case("MailsvcFilesEnd", False, 10, {'disk_free_files{place="mail"}': "30000x20"}),
    Case("MailsvcQueueOld", True, 30, queue("0x60", "3x60", "0x60", "50000+60x60")),
    Case("MailsvcQueueOld", False, 30, queue("0x60", "3x60", "1x60", "50000+60x60")),
    Case("MailsvcQueueOld", False, 30, queue("0x60", "3x60", "0x60", "30000+60x60")),
    Case("MailsvcQueueGrows", True, 80, queue("10x100", "100+10x100", "0x100")),
    Case("MailsvcQueueGrows", False, 80, queue("10x100", "5000+10x100", "0x100")),
    Case("MailsvcQueueGrows", False, 80, queue("10x100", "10+1x100", "0x100")),
    Case("MailsvcDeliveriesDeferred", True, 60, deliveries(deferred="0+5x60", relayed="0+1x60")),
    Case("MailsvcDeliveriesDeferred", False, 60, deliveries(deferred="0+5x60", relayed="0+5x60")),
    Case("MailsvcDeliveriesDeferred", False, 60, deliveries(deferred="0+1x60")),
    Case("MailsvcDeliveryFailures", True, 100, deliveries(failed="0+1x100", relayed="0+2x100")),
    Case("MailsvcDeliveryFailures", False, 100, deliveries(failed="0+1x100", relayed="0+9x100")),
    Case("MailsvcDeliveryFailures", False, 100, deliveries(failed="0x50 5x100")),
    Case("MailsvcWebhooksFail", True, 90, webhooks("9x100", "5x100")),
    Case("MailsvcWebhooksFail", False, 90, webhooks("9x100", "0+1x100")),
    Case("MailsvcWebhooksFail", False, 90, webhooks("0x100", "5x100")),
    Case("MailsvcCertificateEndsSoon", True, 90, {CERTIFICATE: f"{13 * 86_400}x100"}),
    Case("MailsvcCertificateEndsSoon", False, 90, {CERTIFICATE: f"{15 * 86_400}x100"}),
    Case("MailsvcCertificateEnds", True, 90, {CERTIFICATE: f"{86_400}x100"}),
    Case("MailsvcCertificateEnds", False, 90, {CERTIFICATE: f"{13 * 86_400}x100"}),
    Case("MailsvcLoginAbuse", True, 60, logins("0+20x60", "0+5x60")),
    Case("MailsvcLoginAbuse", False, 60, logins("0+20x60", "0+90x60")),
    Case("MailsvcLoginAbuse", False, 60, logins("0+2x60", "0x60")),
    Case("MailsvcBansSurge", True, 90, {"bans": "0+3x100"}),
    Case("MailsvcBansSurge", False, 90, {"bans": "5000x100"}),
    Case("MailsvcRecipientsRefused", True, DAY + 80, {REFUSED: f"0+10x{DAY} 14400+200x100"}),
    Case("MailsvcRecipientsRefused", False, DAY + 80, {REFUSED: f"0+200x{DAY + 100}"}),
    Case("MailsvcRecipientsRefused", False, DAY + 80, {REFUSED: f"0x{DAY} 0+20x100"}),
    Case("MailsvcSubmissionSurge", True, DAY + 80, {SUBMITTED: f"0+1x{DAY} 1440+100x100"}),
    Case("MailsvcSubmissionSurge", False, DAY + 80, {SUBMITTED: f"0+100x{DAY + 100}"}),
]


def promtool(program: Callable[[str], str], directory: Path, test: dict[str, Any],
             step: str = "1m") -> str:
    """Nothing, or what `promtool test rules`, which goes by *step*, has to say of *test*."""
    file = directory / "test.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": step,
                                "tests": [{"interval": "1m", **test}]}))  # JSON is YAML
    done = subprocess.run([program("promtool"), "test", "rules", str(file)], capture_output=True,
                          text=True, timeout=PATIENCE, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def input_series(series: dict[str, str]) -> list[dict[str, str]]:
    """*series* of one instance."""
    found = []
    for name, values in series.items():
        figure, _, labels = name.rstrip("}").partition("{")
        own = ",".join(filter(None, (labels, 'job="mailsvc"', 'instance="mx1"')))
        found.append({"series": f"mailsvc_{figure}{{{own}}}", "values": values})
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: (
    f"{case.alert}-{'fires' if case.fires else 'silent'}"))
def test_an_alert_fires_when_it_should_and_not_else(
    case: Case, program: Callable[[str], str], tmp_path: Path
) -> None:
    firing = f'count by (alertname) (ALERTS{{alertname="{case.alert}",alertstate="firing"}})'
    expected = [{"labels": f'{{alertname="{case.alert}"}}', "value": 1}] if case.fires else []
    assert promtool(program, tmp_path, {
        "input_series": input_series(case.series), "promql_expr_test": [
            {"expr": firing, "eval_time": f"{case.minutes}m", "exp_samples": expected}]},
        "1m" if case.minutes < DAY else "10m") == ""


def test_every_alert_was_seen_to_fire_and_to_be_silent() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())
    assert alerts == list(dict.fromkeys(case.alert for case in CASES))
    for alert in alerts:
        assert {case.fires for case in CASES if case.alert == alert} == {True, False}


def test_what_an_alert_says(program: Callable[[str], str], tmp_path: Path) -> None:
    action = ("See whether the service runs (systemctl status mailsvc, journalctl -u mailsvc), "
              "whether listeners.http is set, and whether Prometheus reaches it (its page "
              '"Targets").')
    for series, labels, summary in (
            ({"ready": "1x30 stale _x30"}, {"job": "mailsvc", "instance": "mx1"},
             "There are no figures of mailsvc on mx1"),
            ({"other": "1x60"}, {}, "There are no figures of mailsvc")):
        alert = {"exp_labels": {"severity": "critical", **labels},
                 "exp_annotations": {"summary": summary, "action": action}}
        assert promtool(program, tmp_path, {
            "input_series": input_series(series), "alert_rule_test": [
                {"alertname": "MailsvcAbsent", "eval_time": "50m", "exp_alerts": [alert]}]}) == ""


def test_rules_have_no_mistake(program: Callable[[str], str]) -> None:
    done = subprocess.run([program("promtool"), "check", "rules", str(RULES)], text=True,
                          capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for rule in RULES.read_text().split("- alert: ")[1:]:
        for key in "expr:", "severity:", "summary:", "action:":
            assert rule.count(key) == 1, rule


# ---- the dashboard by itself --------------------------------------------------------------------

#: Ids of Grafana's units that are used.
UNITS = {"none", "short", "cps", "Bps", "bytes", "s", "percentunit", "dateTimeFromNow"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']}-{panel['title']}")
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references) > 0
    for source in (panel, *panel["targets"]):
        assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert "{{instance}}" in target["legendFormat"]
        assert all('job=~"$job", instance=~"$instance"' in each
                   for each in re.findall(r"mailsvc_\w+(\{[^}]*\})?", target["expr"]))


def test_panels_have_ids_and_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = set(itertools.product(range(place["x"], place["x"] + place["w"]),
                                      range(place["y"], place["y"] + place["h"])))
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


# ---- both, over a real Prometheus ---------------------------------------------------------------


class Prometheus:
    """A Prometheus that scrapes *target* every second, with our rules."""

    def __init__(self, path: str, directory: Path, target: str) -> None:
        configuration = directory / "prometheus.yml"
        configuration.write_text(json.dumps({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {"job_name": "mailsvc", "static_configs": [{"targets": [target]}]}]}))
        self.address = host, port = "127.0.0.1", free_port()
        with (directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [path, f"--config.file={configuration}",
                 f"--storage.tsdb.path={directory / 'prometheus'}",
                 f"--web.listen-address={host}:{port}"], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log)

    def __enter__(self) -> Prometheus:
        wait_for(self.address)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)

    def api(self, path: str, **parameters: str) -> Any:
        host, port = self.address
        with urllib.request.urlopen(f"http://{host}:{port}/api/v1/{path}?"
                                    + urllib.parse.urlencode(parameters), timeout=PATIENCE) as told:
            return json.load(told)["data"]

    def ask(self, query: str) -> list[dict[str, Any]]:
        return list(self.api("query", query=query)["result"])


@pytest.fixture(scope="module")
def prometheus(
    program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    path, directory = program("prometheus"), tmp_path_factory.mktemp("prometheus")
    account = "alice@example.org"
    with Service(directory / "data", (f"{account}:secret",),
                 ("--workers", "2", "--http", "127.0.0.1:0", "--submission", "127.0.0.1:0", "--set",
                  "smtp.allow_cleartext_auth=yes")) as service:
        host, port = service.listeners["http"]
        with Prometheus(path, directory, f"{host}:{port}") as watching:
            for _ in range(3):
                submit(service, b"Subject: hello\r\n\r\nHello.\r\n", (account,))
            fetch(service, account)
            with smtplib.SMTP(*service.listeners["submission"]) as sender:
                sender.login(account, "secret")
            deadline = time.monotonic() + PATIENCE
            while not watching.ask("count_over_time(mailsvc_ready[1m]) > 3"):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield watching


@pytest.mark.parametrize(("query", "legend"), [each[1:] for each in QUERIES], ids=[
    f"{number}-{title}" for number, (title, _, _) in enumerate(QUERIES)])
def test_a_query_of_the_dashboard_finds_something(
    prometheus: Prometheus, query: str, legend: str
) -> None:
    for variable, value in (("$__rate_interval", "1m"), ("$job", ".+"), ("$instance", ".+")):
        query = query.replace(variable, value)
    assert "$" not in query
    found = prometheus.ask(query)
    assert found or "disk_free_files" in query  # as on Btrfs
    # What the legend names is there, but for a line that stands in when all of them are 0.
    named = set(re.findall(r"{{(\w+)}}", legend))
    assert all(named <= set(each["metric"]) for each in found) or " or " in query


def asked() -> Iterator[tuple[str, list[str]]]:
    """Every expression of rules and dashboard, with the selectors in it."""
    rules = [re.sub(r"\n +", " ", text.split("\n        for:")[0].split("\n        labels:")[0])
             for text in RULES.read_text().split("expr: ")[1:]]
    for expression in (*rules, *(query for _, query, _ in QUERIES)):
        yield expression, [
            name + matchers.replace("$job", ".+").replace("$instance", ".+")
            for name, matchers in re.findall(r"\b(mailsvc_\w+)(\{[^}]*\})?", expression)]


def test_whatever_is_asked_for_is_told_by_a_service(prometheus: Prometheus) -> None:
    expressions = list(asked())
    assert len(expressions) > 60
    for expression, selectors in expressions:
        known: set[str] = set()
        for selector in selectors:
            found = prometheus.ask(selector)
            assert found or "disk_free_files" in selector, f"{selector} of {expression}"
            known.update(*(each["metric"] for each in found))
        # Each label that it is added up by is there.
        named = re.findall(r"(?:by|without|ignoring) \(([\w, ]+)\)", expression)
        missing = {label for words in named for label in words.split(", ")} - known
        assert not missing, f"{missing} of {expression}"


def test_prometheus_evaluates_the_rules(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]

    deadline = time.monotonic() + PATIENCE
    while any(rule["health"] == "unknown" for rule in rules()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert [rule["name"] for rule in rules() if rule["health"] != "ok"] == []
    # A throwaway service on a disk of whatever size has nothing else to be alarmed about.
    assert [rule["name"] for rule in rules() if rule["state"] != "inactive"
            and not re.match("MailsvcDisk|MailsvcFiles|MailsvcReactor|MailsvcCommit", rule["name"])
            ] == []


# ---- a full disk --------------------------------------------------------------------------------


def test_a_disk_without_any_room_is_still_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alert would end with the figure, just when it is worst."""
    class Full:
        f_bavail = f_favail = 0
        f_frsize, f_blocks, f_files = 4096, 1000, 1000

    memory = Figures(1)
    monkeypatch.setattr("os.statvfs", lambda _: Full)
    observer = Observer(Share(memory), Clock(), [], tmp_path, tmp_path)
    observer.startService()
    observer.stopService()
    reading = memory.read()
    assert reading.total(figures.DISK_FREE, "mail") == 1
    assert reading.total(figures.DISK_FILES, "mail") == 1
