"""What `hcc run` puts together.

`composition` makes everything, `sidecar` starts and stops it, `state_directory` is the place on disk, `selection`
finds the proxy, `collectors` are the metrics that are asked for at each scrape.
"""
