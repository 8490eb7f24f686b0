"""The agent that HAProxy asks, over SPOP 2.0, whether the holder of a client certificate may come in.

`frames`, `hello` and `connection` are the protocol, `der`, `caller` and `decision` what is answered; `worker` and
`zygote` run in processes of their own, `spawner`, `slot` and `pool` are the main process's end of these, `channel` is
between them, and `counters` is the memory that they share. The pure modules, which do no input or output, are named
in a contract of `pyproject.toml`.
"""
