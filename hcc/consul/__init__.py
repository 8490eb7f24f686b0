"""Consul's side of the world: its HTTP API in, `hcc.mesh` values out.

`watch` asks and asks again, `fetch` has the questions, `client` sends them, `decode` and its kin read the answers,
and `assembly` puts them together. The pure modules, which do no input or output, are named in a contract of
`pyproject.toml`.
"""
