"""The alert and recording rules, run by Prometheus' own tool: each alert fires when it should, and only then."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from hcc.metrics import Metrics
from tests import binaries
from tests.every_metric import everything
from tests.observability import PROMETHEUS, RULES

pytestmark = pytest.mark.integration

DAY_S = 86_400
SERIES = dict[str, str]
"""Series and its values, a sample every 15 s: `1+2x10` is 1, 3, 5, .. and 10 of them more."""


def steady(value: float, minutes: int = 120) -> str:
    return f"{value}+0x{minutes * 4}"


def growing(per_sample: float, minutes: int = 120) -> str:
    return f"0+{per_sample}x{minutes * 4}"


def as_at_the_start(series: str) -> str:
    """What a sidecar shows of it that knows nothing yet."""
    value = Metrics().registry.get_sample_value(series)
    return f"_x{120 * 4}" if value is None else steady(value)


HEALTHY: SERIES = {
    'up{job="hcc"}': steady(1),
    "hcc_stale_answers": steady(0),
    "hcc_ready": steady(1),
    "hcc_haproxy_up": steady(1),
    "hcc_haproxy_stats_up": steady(1),
    "hcc_haproxy_open_connections": steady(10),
    "hcc_haproxy_max_connections": steady(10_000),
    "hcc_haproxy_starts_total": steady(1),
    "hcc_upstream_serving_endpoints": steady(3),
    "hcc_upstream_leg_serving_endpoints": steady(1),
    "hcc_listeners_left_out": steady(0),
    'hcc_refused_endpoints{reason="impostor"}': steady(0),
    'hcc_refused_endpoints{reason="unverified"}': steady(0),
    "hcc_waiting_endpoints": steady(0),
    "hcc_silent_endpoints": steady(0),
    "hcc_upstream_denied_responses_total": steady(1),
    'hcc_upstream_responses_total{code="2xx"}': growing(100),
    'hcc_upstream_responses_total{code="5xx"}': growing(1),
    'hcc_spoe_workers{phase="ready"}': steady(2),
    'hcc_spoe_workers{phase="exited"}': steady(0),
    "hcc_spoe_worker_exits_total": steady(1),
    "hcc_inbound_denied_total": growing(1),
    "hcc_leaf_start_timestamp_seconds": steady(0),
    "hcc_leaf_expiry_timestamp_seconds": steady(3 * DAY_S),
    "hcc_root_expiry_timestamp_seconds": steady(3650 * DAY_S),
    "hcc_certificate_rejects_total": steady(2),
    'hcc_watch_stale{watch="LeafWatch"}': steady(0),
    'hcc_watch_failing{watch="LeafWatch"}': steady(0),
    "hcc_reloads_total": steady(4),
    'hcc_plans_total{outcome="failed"}': steady(3),
    "hcc_drift_repairs_total": steady(1),
    "hcc_configuration_problems": steady(0),
    'hcc_actor_restarts_total{actor="Admin"}': steady(2),
    'hcc_actor_up{actor="Admin"}': steady(1),
}

# What is ill in each case, besides everything that is healthy; the alert's name, and when it must fire at the latest.
ILL: dict[str, tuple[SERIES, str]] = {
    "HccDown": ({'up{job="hcc"}': steady(0)}, "2m"),
    "HccNotReady": ({"hcc_ready": steady(0)}, "3m"),
    "HccHAProxyDown": ({"hcc_haproxy_up": steady(0)}, "2m"),
    "HccHAProxySilent": ({"hcc_haproxy_stats_up": steady(0)}, "6m"),
    "HccUpstreamWithoutEndpoints": ({"hcc_upstream_serving_endpoints": steady(0)}, "3m"),
    "HccListenersLeftOut": ({"hcc_listeners_left_out": steady(1)}, "3m"),
    "HccUpstreamErrors": ({'hcc_upstream_responses_total{code="5xx"}': growing(10)}, "15m"),
    "HccImpostor": ({'hcc_refused_endpoints{reason="impostor"}': steady(1)}, "1m"),
    "HccAnswersCut": ({"hcc_upstream_denied_responses_total": growing(1)}, "6m"),
    "HccEndpointsNotVerified": ({"hcc_waiting_endpoints": steady(1)}, "11m"),
    "HccEndpointsSilent": ({"hcc_silent_endpoints": steady(1)}, "11m"),
    "HccConnectionsNearLimit": ({"hcc_haproxy_open_connections": steady(9_000)}, "6m"),
    "HccSPOEDown": ({'hcc_spoe_workers{phase="ready"}': steady(0)}, "1m"),
    "HccSPOERestartLoop": ({"hcc_spoe_worker_exits_total": growing(1)}, "10m"),
    "HccDenialsSpike": ({"hcc_inbound_denied_total": "0+1x320 320+300x160"}, "90m"),
    "HccLeafNotRenewed": ({"hcc_leaf_expiry_timestamp_seconds": steady(3600)}, "58m"),
    "HccCertificatesRefused": ({"hcc_certificate_rejects_total": growing(3)}, "15m"),
    "HccRootExpires": ({"hcc_root_expiry_timestamp_seconds": steady(7 * DAY_S)}, "65m"),
    "HccWatchStale": ({'hcc_watch_stale{watch="LeafWatch"}': steady(1)}, "2m"),
    "HccStaleAnswers": ({"hcc_stale_answers": steady(1)}, "11m"),
    "HccWatchFailing": ({'hcc_watch_failing{watch="LeafWatch"}': steady(1)}, "6m"),
    "HccReloadStorm": ({"hcc_reloads_total": growing(1)}, "10m"),
    "HccPlansFail": ({'hcc_plans_total{outcome="failed"}': growing(1)}, "10m"),
    "HccDrift": ({"hcc_drift_repairs_total": growing(0.05)}, "60m"),
    "HccConfigurationProblems": ({"hcc_configuration_problems": steady(1)}, "12m"),
    "HccRestartLoop": ({'hcc_actor_restarts_total{actor="Admin"}': growing(1)}, "10m"),
    "HccHAProxyRestartLoop": ({"hcc_haproxy_starts_total": growing(1)}, "10m"),
    "HccActorDown": ({'hcc_actor_up{actor="Admin"}': steady(0)}, "2m"),
}
# How many at once make an alert that counts fire; one less does not.
COUNTED: dict[str, tuple[str, int]] = {
    "HccSPOERestartLoop": ("hcc_spoe_worker_exits_total", 6),
    "HccCertificatesRefused": ("hcc_certificate_rejects_total", 21),
    "HccReloadStorm": ("hcc_reloads_total", 6),
    "HccPlansFail": ('hcc_plans_total{outcome="failed"}', 2),
    "HccDrift": ("hcc_drift_repairs_total", 3),
    "HccRestartLoop": ('hcc_actor_restarts_total{actor="Admin"}', 4),
    "HccHAProxyRestartLoop": ("hcc_haproxy_starts_total", 4),
}
DATES = tuple(series for series in HEALTHY if series.endswith("_timestamp_seconds"))
WHO = 'instance="web-1",service="web",source="web",destination="api",datacenter="dc1",protocol="http"'


def case(name: str, ill: SERIES, at: str, firing: tuple[str, ...]) -> dict[str, object]:
    """One test of promtool; what it shows is compared as a whole, so nothing else may fire."""
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in firing]
    asked = 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "name": name,
        "interval": "15s",
        "input_series": [{"series": labelled(one), "values": values} for one, values in (HEALTHY | ill).items()],
        "promql_expr_test": [{"expr": asked, "eval_time": at, "exp_samples": expected}],
    }


def labelled(series: str) -> str:
    name, _, labels = series.rstrip("}").partition("{")
    return f"{name}{{{WHO}{',' if labels else ''}{labels}}}"


def test_each_alert_fires_alone_when_it_should_and_none_when_all_is_well(tmp_path: Path) -> None:
    cases = [case("all is well", {}, f"{minutes}m", ()) for minutes in (1, 20, 70)]
    cases += [case(alert, ill, at, (alert,)) for alert, (ill, at) in ILL.items()]
    # Hcc died, Consul forgot its address; and one that was stopped, or came back.
    cases += [
        case("forgotten", {'up{job="hcc"}': "1+0x40 0+0x4 stale"}, "50m", ("HccDown",)),
        case("forgotten for long", {'up{job="hcc"}': "1+0x40 0+0x4 stale"}, "75m", ()),
        case("stopped", {'up{job="hcc"}': "1+0x40 stale"}, "50m", ()),
        case("stopped before Prometheus knew", {'up{job="hcc"}': "1+0x40 0 0 stale"}, "50m", ()),
        case("came back", {'up{job="hcc"}': "1+0x40 0+0x4 _x20 1+0x400"}, "50m", ()),
    ]
    for alert, (series, count) in COUNTED.items():
        # From 9 on: what begins at 0 is not extrapolated.
        cases.append(case(f"{alert}, one too few", {series: f"9+0x40 {9 + count - 1}+0x200"}, "17m", ()))
        cases.append(case(f"{alert}, just enough", {series: f"9+0x40 {9 + count}+0x200"}, "17m", (alert,)))
    leg = {"hcc_upstream_leg_serving_endpoints": steady(0)}
    cases += [case("one leg is without endpoints", leg, "3m", ("HccUpstreamWithoutEndpoints",))]
    cases += [case("no leaf yet", {series: as_at_the_start(series) for series in DATES}, "70m", ())]
    file = tmp_path / "test.yml"
    # Every JSON text is YAML, too.
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": cases}))

    done = promtool("test", "rules", str(file))

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_in_the_table_above() -> None:
    assert set(re.findall(r"alert: (\S+)", RULES.read_text())) == set(ILL)


def test_every_alert_that_counts_is_in_the_table_of_those() -> None:
    counting = re.findall(r"alert: (\S+)\n\s+expr: increase\(.*\) > [1-9]", RULES.read_text())
    assert set(counting) == set(COUNTED)


def test_the_first_plan_that_fails_is_a_step() -> None:
    assert Metrics().registry.get_sample_value("hcc_plans_total", {"outcome": "failed"}) == 0.0


def test_the_rules_are_sound() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scrape_configuration_is_sound() -> None:
    done = promtool("check", "config", str(PROMETHEUS))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_figures_that_the_cases_make_up_are_ones_that_sidecars_have() -> None:
    shown = {sample.name for family in everything().registry.collect() for sample in family.samples}
    # `up` is Prometheus' own.
    assert {series.partition("{")[0] for series in HEALTHY} - {"up"} <= shown


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binaries.promtool(), *words], capture_output=True, text=True, timeout=100, check=False)
