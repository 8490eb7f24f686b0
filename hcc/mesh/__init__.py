"""What Consul's service mesh means, as values and pure functions; every module here is pure."""
