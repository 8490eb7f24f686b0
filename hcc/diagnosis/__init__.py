"""What an operator asks when something is wrong: `hcc doctor` and `hcc troubleshoot`.

`finding` and `sidecar` are pure. Each other module looks at one thing and tells what it found and what to do; none
changes anything.
"""
