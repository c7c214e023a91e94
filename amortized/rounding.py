"""Values that were rounded before they came: repeats that are no best result so far.

Measurements of a prior with continuous noise never repeat. Where contexts are the best result so far they do, and a network
that was trained on such reads every repeat so: what follows may be worse. Values with few decimals repeat as well, where a
curve is nearly level; they are given, drawn once and for all, an error as large as the rounding's.
"""

import numpy as np

DECIMALS = range(-3, 12)
EXACT = 1e-6  # of a step, within which a value is a multiple of it
NEAR = 3.0  # steps: what a rounded curve changes by where it repeats values; the best so far moves by more


def step(y: np.ndarray) -> float:
    """The power of ten that values were rounded to, shape (n,) in increasing order of x; 0 where nothing tells so.

    It is the largest that all are multiples of, if some neighbours are equal and those beside them differ by a few steps, in
    the median.
    """
    change = np.abs(np.diff(y))
    equal = change == 0.0
    if not equal.any():
        return 0.0
    beside = ~equal & (np.append(equal[1:], False) | np.insert(equal[:-1], 0, False))
    if not beside.any():
        return 0.0
    for decimals in DECIMALS:
        size = 10.0**-decimals
        times = np.round(y / size)
        if np.all((times > 0) & (np.abs(y / size - times) < EXACT)):
            return size if np.median(change[beside]) <= (NEAR + EXACT) * size else 0.0
    return 0.0


def with_error(y: np.ndarray, size: float) -> np.ndarray:
    """Values that were rounded to `size`, with an error that is uniform within half of it either way, equal for equal n."""
    return y + size * np.random.default_rng(y.size).uniform(-0.5, 0.5, y.size)
