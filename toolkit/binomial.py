"""The binomial law, exact, for tests of counts."""

import math


def tail(successes: int, trials: int, chance: float) -> float:
    """Probability of so many successes or more, if each of the trials has that `chance`, 0 < chance ≤ 1."""
    if chance >= 1:
        return 1.0

    def log_probability(k: int) -> float:
        ways = math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        return ways + k * math.log(chance) + (trials - k) * math.log1p(-chance)

    return min(1.0, math.fsum(math.exp(log_probability(k)) for k in range(successes, trials + 1)))
