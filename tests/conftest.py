"""What holds for the tests of every tier."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Machines are shared, and slow for a moment now and then: what takes long is for benchmarks to tell.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")
