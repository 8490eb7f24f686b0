from hcc.actors.callers import MAX_CALLERS, OTHER, UNKNOWN, Callers


def test_the_last_decision_about_a_service_counts_and_all_are_counted() -> None:
    callers = Callers()
    callers.decided("shop", "deny", "default policy", 1.0)
    callers.decided("cart", "allow", "intention", 2.0)
    callers.decided("shop", "allow", "intention", 3.0)

    newest = callers.newest()

    assert [(one.service, one.verdict, one.decided_at, one.decisions) for one in newest] == [
        ("shop", "allow", 3.0, 2),
        ("cart", "allow", 2.0, 1),
    ]


def test_a_decision_by_an_earlier_policy_is_marked_until_the_next_one() -> None:
    callers = Callers()
    callers.decided("shop", "deny", "default policy", 1.0)
    callers.policy_changed()
    assert [one.current for one in callers.newest()] == [False]
    callers.decided("shop", "deny", "default policy", 2.0)
    assert [(one.current, one.decisions) for one in callers.newest()] == [(True, 2)]


def test_a_caller_without_a_certain_name_has_one_of_its_own() -> None:
    callers = Callers()
    assert callers.decided("", "deny", "two URIs", 1.0) == UNKNOWN
    assert [one.service for one in callers.newest()] == [UNKNOWN]


def test_callers_and_labels_are_bounded() -> None:
    callers = Callers()
    labels = [callers.decided(f"service-{number}", "deny", "", 1.0) for number in range(MAX_CALLERS + 50)]

    assert len(callers.newest()) == MAX_CALLERS
    assert callers.newest()[0].service == f"service-{MAX_CALLERS + 49}"
    assert labels[MAX_CALLERS:] == [OTHER] * 50
    assert callers.decided("service-0", "deny", "", 2.0) == "service-0"
