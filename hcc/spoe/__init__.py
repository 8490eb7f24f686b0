"""The agent that HAProxy asks, over SPOP 2.0, whether the holder of a client certificate may come in.

Pure: `varint`, `values`, `payloads`, `frames`, `hello`, `connection`, `caller`, `der`, `decision`, `cache`,
`policy_codec`, `control`, `events`, `status`.
Input and output: `counters` (shared memory), `channel` (control sockets), `worker` and `zygote` (their own
processes), `readiness`, `listener`, `spawner`, `slot` and `pool` (the main process's end).
"""
