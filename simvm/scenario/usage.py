"""How much memory a guest uses over time: settings of a phase whose region follows a series.

A series is recorded (a Parquet file, see :mod:`simvm.workload.usage`) or generated. A recorded
one begins with the phase. A generated one follows the simulated clock, which begins at midnight,
so that a guest that comes later finds the time of day that it is.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from simvm.scenario import fields as f
from simvm.scenario.base import Model, choice
from simvm.scenario.fields import one_of
from simvm.units import SECOND

HOUR = 3600 * SECOND

INTERVAL = SECOND
"""How long a paced phase does its share of the accesses for, and then rests, by default."""

Members = Annotated[
    Literal["same", "shifted", "independent"], one_of("same", "shifted", "independent")
]


class RecordedUsage(Model):
    """The recorded memory use of a machine, from the beginning of the phase on."""

    kind: Literal["recorded"] = "recorded"
    file: f.Text
    """A usage file, relative to the file that names it: `time_ns` and `used_bytes` by row."""
    scale: f.Scale = 1.0
    """Bytes of the series times this."""
    loop: f.Flag = False
    """Whether the series begins again when it ends; else the phase ends with it."""
    cached: f.Flag = True
    """Whether `cached_bytes` of the file, if it has them, are the size of the guest's cache."""
    members: Members = "same"
    """same: all guests from its beginning; shifted: guest i from so many i-ths of its span on, by
    the number of guests; independent: each from a place of its own, drawn."""


class DiurnalUsage(Model):
    """A cosine over the day, with noise, for each guest of the class."""

    kind: Literal["diurnal"] = "diurnal"
    period: f.Duration = 24 * HOUR
    """After which the curve repeats; the noise does not."""
    low: f.PageMultiple
    """Used at the least, half a period from the peak; noise does not go below."""
    high: f.PageMultiple
    """Used at the peak, when activity is 1; noise does not go above."""
    peak_at: f.Time = 14 * HOUR
    """From midnight, which is when the simulation begins."""
    noise: f.Share = 0.0
    """Standard deviation, as a share of high less low; drawn anew at each step."""
    step: f.Duration = 300 * SECOND
    """From one size to the next."""
    members: Members = "same"
    """same: all guests peak together; shifted: guest i so many i-ths of the period earlier, by
    the number of guests; independent: each at a time of its own, drawn."""
    correlation: f.Share | None = None
    """Of the noise of two guests of the class; by default 1 for same, else 0."""


class BurstyUsage(Model):
    """Bursts: high for an exponentially distributed time, low for another, and so on."""

    kind: Literal["bursty"] = "bursty"
    low: f.PageMultiple
    """Used between two bursts."""
    high: f.PageMultiple
    """Used in a burst, when activity is 1."""
    on: f.Duration
    """The mean length of a burst."""
    off: f.Duration
    """The mean time between two bursts."""
    members: Members = "same"
    """same: all guests burst together; shifted: guest i so many i-ths of on + off earlier, by the
    number of guests; independent: each at times of its own."""


AnyUsage = RecordedUsage | DiurnalUsage | BurstyUsage

Usage = Annotated[
    AnyUsage,
    Field(discriminator="kind"),
    choice("kind", *get_args(AnyUsage), default="recorded"),
]
