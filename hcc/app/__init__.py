"""What `hcc run` puts together.

`sidecar` makes and stops everything, `state_directory` is the place on disk, `selection` finds the proxy, `collectors`
are the metrics that are asked for at each scrape.
"""
