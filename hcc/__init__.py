"""HAProxy Connect: HAProxy as a data plane of Consul's service mesh."""
