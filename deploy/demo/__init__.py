"""`make demo`: the original README's example step by step, with real programs, on one machine, without root.

`command` runs and cleans up, `story` is what happens in order, `stage` what it happens on (`programs`,
`ports`, `agent`, `sidecar`), `caller` is its curl, `children` starts and ends processes, `talk` prints,
`hello` is the test server. Standard library only.
"""
