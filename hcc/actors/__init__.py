"""The actors and their supervision.

`actor`, `context`, `child`, `mailbox`, `address`, `timers`, `lifecycle`, `supervisor` and `tree` know nothing of
the mesh. One module for each actor does: `consul_watcher`, `cert_manager`, `config_reconciler`,
`process_supervisor`, `spoe_pool`, `admin`. Pure: `messages`, `readiness`, `restart`. `web` is Admin's HTTP server.
"""
