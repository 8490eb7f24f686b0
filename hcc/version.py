"""The version of hcc, in the one place that packaging and `--version` read it from."""

VERSION = "0.1.0"
