"""The actors and their supervision.

`actor`, `context`, `child`, `mailbox`, `address`, `timers`, `lifecycle`, `supervisor` and `tree` know nothing of the
mesh. One module for each actor does: `consul_watcher`, `cert_manager`, `config_reconciler`, `process_supervisor`,
`spoe_pool`, `token_agent`, `authoriser`, `verifier`, `admin`; what they decide by stands in modules of its own. `web`
is Admin's HTTP server. The pure modules, which do no input or output, are named in a contract of `pyproject.toml`.
"""
