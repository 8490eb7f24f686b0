"""For all tests: how Hypothesis looks for examples."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# On a machine that others use, too, any example may take long: by itself that says nothing.
settings.register_profile("hcc", deadline=None, suppress_health_check=(HealthCheck.too_slow,))
settings.load_profile("hcc")
