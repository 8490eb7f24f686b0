"""What deploy/prometheus and deploy/grafana ask Prometheus, read from the committed files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).parents[1] / "deploy"
PROMETHEUS = DEPLOY / "prometheus" / "prometheus.yml"
RULES = DEPLOY / "prometheus" / "hcc-rules.yml"
DASHBOARD = DEPLOY / "grafana" / "hcc.json"


@dataclass(frozen=True)
class Query:
    """One query of one panel, its variables as in Grafana."""

    panel: str
    expression: str

    def with_variables(self, interval: str) -> str:
        """As Grafana asks it when everything is selected."""
        return re.sub(r"\$(service|instance|destination)\b", ".*", self.expression).replace(
            "$__rate_interval", interval
        )


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    return [Query(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


def names(expression: str) -> set[str]:
    """Metrics of sidecars, recorded ones too, and Prometheus' own `up`, in a query or rule."""
    plain = re.sub(r'"[^"]*"|\{\{.*?\}\}', "", expression)
    return set(re.findall(r"(?<![\w:])(?:up\b|(?:[a-z_]+:)?(?:hcc|process)_[a-z0-9_]+(?::[a-z0-9_]+)?)", plain))


def grouping(expression: str) -> set[str]:
    """Labels that a query sums by."""
    return {label.strip() for found in re.findall(r"by \(([^)]*)\)", expression) for label in found.split(",")}


def recorded() -> set[str]:
    """Names that the rules make."""
    return set(re.findall(r"record: (\S+)", RULES.read_text()))


def rule_expressions() -> list[str]:
    """The text of every `expr`, comments left out."""
    lines = [line for line in RULES.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines)
    return re.findall(r"expr: \|?\s*(.*?)(?=\n\s+(?:for|labels|annotations|- )|\Z)", text, re.DOTALL)
