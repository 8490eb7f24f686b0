"""Rules and dashboard ask for what sidecars show; cheap, without a Prometheus: test_prometheus.py has one."""

from __future__ import annotations

import pytest

from tests.every_metric import everything
from tests.metrics_reference import PAGE, text
from tests.observability import Query, dashboard, grouping, names, panels, queries, recorded, rule_expressions

TARGET_LABELS = {"job", "instance", "service", "node", "dc", "alertname"}


def samples() -> set[str]:
    return {sample.name for family in everything().registry.collect() for sample in family.samples}


def labels() -> set[str]:
    found = {name for family in everything().registry.collect() for sample in family.samples for name in sample.labels}
    return found | TARGET_LABELS


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.panel)
def test_each_panel_asks_for_what_sidecars_show(query: Query) -> None:
    assert names(query.expression)
    assert names(query.expression) <= samples()
    assert grouping(query.expression) <= labels()


def test_each_rule_asks_for_what_sidecars_show_or_rules_record() -> None:
    expressions = rule_expressions()
    assert len(expressions) > 25
    for expression in expressions:
        assert names(expression), expression
        assert names(expression) <= samples() | recorded() | {"up"}
        assert grouping(expression) <= labels()


def test_what_is_recorded_is_named_by_level_metric_and_operation() -> None:
    assert all(len(name.split(":")) == 3 for name in recorded())


def test_every_panel_has_a_place_a_title_a_text_and_the_chosen_data_source() -> None:
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_variables_that_panels_use_are_there() -> None:
    known = {variable["name"] for variable in dashboard()["templating"]["list"]}
    assert known == {"datasource", "service", "instance", "destination"}
    assert all("$" not in query.with_variables("1m") for query in queries())


def test_the_page_of_metrics_is_in_step_with_the_registry() -> None:
    assert PAGE.read_text("utf-8") == text(), "run `make docs`"
