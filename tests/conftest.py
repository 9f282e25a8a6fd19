"""What all tests share: how much of it to run, and how Hypothesis searches.

`SIMVM_LONG=1` runs statistical tests at full size and lets Hypothesis search further, with a new
seed each time; without it every run does the same.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

LONG = os.environ.get("SIMVM_LONG", "0") not in ("", "0")

# How long an example takes says nothing here: the machine may be busy.
SLOW = [HealthCheck.too_slow]
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=SLOW)
settings.register_profile("long", deadline=None, max_examples=1000, suppress_health_check=SLOW)
settings.load_profile("long" if LONG else "same")


@pytest.fixture(scope="session")
def full_size() -> bool:
    """Whether statistical tests run at full size (`make test-long`)."""
    return LONG
