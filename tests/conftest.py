"""For all tests: hypothesis takes the time that it needs. The machine may be busy, and no test fails on time."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
