import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.mesh.identity import MAX_URI_BYTES, IdentityError, ServiceIdentity, parse_service_uri

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
NAMES = st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable())


def test_a_consul_uri_names_service_datacenter_and_namespace() -> None:
    identity = parse_service_uri(f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/My_Svc.with-dots")

    assert identity == ServiceIdentity(TRUST_DOMAIN, "My_Svc.with-dots", "dc1")


def test_a_partition_stands_before_the_namespace() -> None:
    identity = parse_service_uri(f"spiffe://{TRUST_DOMAIN}/ap/team/ns/a/dc/dc1/svc/web")

    assert (identity.partition, identity.namespace) == ("team", "a")
    assert identity.uri() == f"spiffe://{TRUST_DOMAIN}/ap/team/ns/a/dc/dc1/svc/web"


@given(service=NAMES, datacenter=NAMES, namespace=NAMES)
def test_every_printable_name_survives_the_way_through_a_uri(service: str, datacenter: str, namespace: str) -> None:
    identity = ServiceIdentity(TRUST_DOMAIN, service, datacenter, namespace)

    assert parse_service_uri(identity.uri()) == identity


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://x.consul/ns/default/dc/dc1/svc/web",
        "spiffe:///ns/default/dc/dc1/svc/web",
        "spiffe://x.consul",
        "spiffe://x.consul/ns/default/dc/dc1/svc/",
        "spiffe://x.consul/ns/default/dc/dc1/svc/web/",
        "spiffe://x.consul/ns/default/dc/dc1/svc/web/extra",
        "spiffe://x.consul/dc/dc1/ns/default/svc/web",
        "spiffe://x.consul/gateway/mesh/dc/dc1",
        "spiffe://x.consul/agent/client/dc/dc1/id/node",
        "spiffe://user@x.consul/ns/default/dc/dc1/svc/web",
        "spiffe://x.consul:8443/ns/default/dc/dc1/svc/web",
        "spiffe://x.consul/ns/default/dc/dc1/svc/web?a=b",
        "spiffe://x.consul/ns/default/dc/dc1/svc/web#a",
        "spiffe://x.consul/ns/default/dc/dc1/svc/%ff",
        "spiffe://x.consul/ns/default/dc/dc1/svc/a%0ab",
        "spiffe://x.consul/ns/default/dc/dc1/svc/a%00",
        "spiffe://x%2econsul/ns/default/dc/dc1/svc/web",
        "spiffe://x.consul?a/ns/default/dc/dc1/svc/web",
        "spiffe://x.consul#a/ns/default/dc/dc1/svc/web",
        "spiffe://x.consul/ns/default/dc/dc1/svc",
        "spiffe://x.consul/ns/default/dc/dc1/svc/" + "a" * 3000,
    ],
)
def test_a_uri_that_is_no_service_is_refused(uri: str) -> None:
    with pytest.raises(IdentityError):
        parse_service_uri(uri)


def test_a_uri_may_be_as_long_as_spiffe_lets_it_and_no_longer() -> None:
    longest = "spiffe://x.consul/ns/default/dc/dc1/svc/".ljust(MAX_URI_BYTES, "a")
    assert parse_service_uri(longest).service.startswith("aaa")
    with pytest.raises(IdentityError, match="at most 2048"):
        parse_service_uri(f"{longest}a")


def test_the_trust_domain_is_compared_without_case_as_host_names_are() -> None:
    upper = parse_service_uri(f"spiffe://{TRUST_DOMAIN.upper()}/ns/default/dc/dc1/svc/web")

    assert upper.trust_domain == TRUST_DOMAIN.lower()


def test_the_source_is_the_name_and_more_only_outside_of_the_defaults() -> None:
    assert ServiceIdentity("td", "My_Svc.with-dots", "dc1").source() == "My_Svc.with-dots"
    assert ServiceIdentity("td", "web", "dc2", "team").source() == "ap/default/ns/team/svc/web"
    assert ServiceIdentity("td", "web", "dc2", partition="east").source() == "ap/east/ns/default/svc/web"


WORDS = st.text(st.sampled_from("aA/%: \u00e9\u20ac"), min_size=1, max_size=6) | st.sampled_from(
    ("default", "web", "ap/default/ns/team/svc/web", "ns", "svc")
)


@given(*(st.tuples(WORDS, WORDS, WORDS),) * 2)
def test_two_services_have_one_source_only_if_they_are_one(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    sources = [ServiceIdentity("td", name, "dc1", space, part).source() for name, space, part in (one, other)]
    assert (sources[0] == sources[1]) is (one == other)
    assert all(source.isascii() and source.isprintable() and " " not in source for source in sources)
