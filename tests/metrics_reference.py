"""docs/metrics.md, made from the registry: `make docs` writes it, a test holds that it is in step."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Metric

from tests.every_metric import everything

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
HEAD = """\
# Metrics

Everything that `/metrics` of a sidecar can show. Made by `make docs` from the registry; do not edit.

Counters of `hcc_upstream_`, `hcc_inbound_`, `hcc_caller_` and `hcc_endpoint_` are HAProxy's own, as is
`hcc_haproxy_connections_total`: they start anew with each reload, which `rate()` takes care of. Averages are HAProxy's,
over its last 1024 connections.

| label | |
|---|---|
| `source`, `destination` | services by Consul's names; a prepared query is `query:NAME` |
| `datacenter` | of the destination's instances |
| `protocol` | tcp, http, http2 or grpc |
| `code` | class of an HTTP status (`2xx`); of `hcc_consul_requests_total` the status itself, or `none` |
| `endpoint` | address and port of an instance, with `--metrics-per-endpoint` only |
| `watch` | kind of question to Consul |
| `actor`, `kind` | name of an actor (`hcc actors`), of an operation on HAProxy (`AddServer`) |
| `health` | of an instance, as Consul says: `passing`, `warning` or `critical` |
| `outcome` | of plans `applied` or `failed`; of probes what was seen |
| `phase` | of a SPOE worker: `starting`, `ready` or `exited` |
| `verdict` | of callers `allow` or `deny`; of tokens `good` or `refused` |
| `reason` | `impostor`: another service, by a probe or by cut answers; `unverified`: its certificate proves nothing |
| `version`, `openssl`, `control` | of hcc, of HAProxy and what it was built with; `direct` or `dataplane` |
"""
GROUPS = (
    (
        "Upstreams: what the application asks of others",
        ("hcc_upstream_", "hcc_probes", "hcc_refused_", "hcc_waiting_", "hcc_silent_", "hcc_leaves_"),
    ),
    ("Inbound: what the mesh asks of the application", ("hcc_inbound_", "hcc_caller_")),
    ("Endpoints, with `--metrics-per-endpoint`", ("hcc_endpoint_",)),
    ("Authorisation", ("hcc_spoe_", "hcc_policy_", "hcc_callers_", "hcc_sessions_", "hcc_audit_", "hcc_token_")),
    ("Certificates", ("hcc_leaf_", "hcc_root_", "hcc_certificate_")),
    ("Consul", ("hcc_watch_", "hcc_consul_", "hcc_snapshot_", "hcc_configuration_", "hcc_stale_")),
    ("What is done to HAProxy", ("hcc_plan", "hcc_operations", "hcc_reloads", "hcc_drift", "hcc_listeners")),
    ("HAProxy", ("hcc_haproxy_",)),
    ("hcc itself", ("hcc_", "process_", "python_")),
)


def text() -> str:
    """The whole page."""
    left = {shown_name(family): family for family in everything().registry.collect()}
    parts = [HEAD]
    for title, prefixes in GROUPS:
        mine = sorted(name for name in left if name.startswith(prefixes))
        rows = [_row(name, left.pop(name)) for name in mine]
        parts.append(f"\n## {title}\n\n| metric | type | labels | |\n|---|---|---|---|\n" + "".join(rows))
    assert not left, f"no group for {sorted(left)}"
    return "".join(parts)


def shown_name(family: Metric) -> str:
    """As it is queried."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def _row(name: str, family: Metric) -> str:
    labels = _ordered(label for sample in family.samples for label in sample.labels if label != "le")
    return f"| `{name}` | {family.type} | {', '.join(f'`{label}`' for label in labels)} | {family.documentation} |\n"


def _ordered(labels: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(labels))


if __name__ == "__main__":
    PAGE.write_text(text(), "utf-8")
