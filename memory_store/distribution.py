"""How large the values of one measure were: recording one costs 0.2 µs, so every batch can."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil, frexp, ldexp

from memory_store.errors import ConfigurationError

__all__ = ["Distribution", "merged"]

# Below every exponent of a float, so that 2 to this power is 0.
_ZERO = -1100


@dataclass(slots=True)
class Distribution:
    """How large the values of one measure were, kept as a histogram by powers of two.

    Args:
        count: how many values there were.
        sum: all of them together.
        max: the largest, 0 before the first.
        buckets: under n, how many were more than 2**(n-1) and at most 2**n; zeros are under the lowest.
    """

    count: int = 0
    sum: float = 0
    max: float = 0
    buckets: dict[int, int] = field(default_factory=dict)

    def record(self, value: float) -> None:
        """Add a value, 0 or more."""
        self.count += 1
        self.sum += value
        if value > self.max:
            self.max = value
        mantissa, exponent = frexp(value)
        if mantissa <= 0.5:  # a power of two, or 0
            exponent = exponent - 1 if mantissa else _ZERO
        self.buckets[exponent] = self.buckets.get(exponent, 0) + 1

    def percentile(self, p: float) -> float:
        """Return what `p` percent of the values did not exceed: never too low, less than twice too high; 0 for none.

        Raises:
            ConfigurationError: `p` is not 0 to 100.
        """
        if not 0 <= p <= 100:
            raise ConfigurationError(f"a percentile is 0 to 100, got {p!r}")
        wanted, seen = max(ceil(self.count * p / 100), 1), 0
        for exponent, count in sorted(self.buckets.items()):
            seen += count
            if seen >= wanted:
                return min(ldexp(1.0, exponent), self.max)
        return self.max


def merged(distributions: Iterable[Distribution]) -> Distribution:
    """Return the distribution of all values of some, as they are now."""
    whole = Distribution()
    for one in distributions:
        whole.count += one.count
        whole.sum += one.sum
        whole.max = max(whole.max, one.max)
        for exponent, count in list(one.buckets.items()):
            whole.buckets[exponent] = whole.buckets.get(exponent, 0) + count
    return whole
