"""Consul's side of the world: its HTTP API in, `hcc.mesh` values out.

Pure: address, answers, assembly, chains, conditions, decode, entries, environment, errors, fields, instances, keys,
known, options, pacing, policy, registration, response, routes, selection. Input and output: client, credentials,
exchange, fetch, held_chains, names, sockets, watch.
"""
