from hcc.actors.callers import MAX_CALLERS, OTHER, UNKNOWN, Callers


def test_the_last_denial_of_a_service_counts_and_all_are_counted() -> None:
    callers = Callers()
    callers.denied("shop", "default policy", 1.0)
    callers.denied("cart", "default policy", 2.0)
    callers.denied("shop", "intention", 3.0)

    newest = callers.newest()

    assert [(one.service, one.verdict, one.reason, one.denied_at, one.denials) for one in newest] == [
        ("shop", "deny", "intention", 3.0, 2),
        ("cart", "deny", "default policy", 2.0, 1),
    ]


def test_a_denial_by_an_earlier_policy_is_marked_until_the_next_one() -> None:
    callers = Callers()
    callers.denied("shop", "default policy", 1.0)
    callers.policy_changed()
    assert [one.current for one in callers.newest()] == [False]
    callers.denied("shop", "default policy", 2.0)
    assert [(one.current, one.denials) for one in callers.newest()] == [(True, 2)]


def test_a_caller_without_a_certain_name_has_one_of_its_own() -> None:
    callers = Callers()
    assert callers.denied("", "two URIs", 1.0) == UNKNOWN
    assert [one.service for one in callers.newest()] == [UNKNOWN]


def test_callers_and_labels_are_bounded() -> None:
    callers = Callers()
    labels = [callers.denied(f"service-{number}", "", 1.0) for number in range(MAX_CALLERS + 50)]

    assert len(callers.newest()) == MAX_CALLERS
    assert callers.newest()[0].service == f"service-{MAX_CALLERS + 49}"
    assert labels[MAX_CALLERS:] == [OTHER] * 50
    assert callers.denied("service-0", "", 2.0) == "service-0"
