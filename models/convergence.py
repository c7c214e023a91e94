"""Rank-normalised R-hat and effective sample sizes of Vehtari et al. (2021, Bayesian Analysis 16, 667-718).

Built on NumPyro's split R-hat and ESS, which the NUTS path has loaded anyway. R-hat equals ArviZ's; the ESS differs from
ArviZ's by a few per cent, because the two cut the sum of autocorrelations at different lags. As there, antithetic chains of N
draws in all count for no more than N log10 N.
"""

import math
from typing import Any

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from scipy import stats

Array = Any


def _rank_normalise(draws: Array) -> Array:
    ranks = stats.rankdata(draws, method="average").reshape(draws.shape)
    return stats.norm.ppf((ranks - 0.375) / (draws.size + 0.25))


def _split(draws: Array) -> Array:
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def _effective(parts: Array) -> float:
    """NumPyro's estimate, within its bounds: of antithetic chains its sum of autocorrelations may be negative."""
    found, most = float(effective_sample_size(parts)), parts.size * math.log10(parts.size)
    if math.isnan(found):
        return 0.0
    return found if 0.0 < found < most else most


def rhat(draws: Array) -> float:
    """Rank-normalised split R-hat, the larger of bulk and folded; draws of shape (chain, draw). 1 for a constant."""
    draws = np.asarray(draws, dtype=float)
    if np.ptp(draws) == 0:
        return 1.0
    bulk = split_gelman_rubin(_rank_normalise(draws))
    folded = split_gelman_rubin(_rank_normalise(np.abs(draws - np.median(draws))))
    return float(np.nanmax([bulk, folded]))


def ess_bulk(draws: Array) -> float:
    """Effective sample size of the rank-normalised split chains; draws of shape (chain, draw)."""
    draws = np.asarray(draws, dtype=float)
    if np.ptp(draws) == 0:
        return float(draws.size)
    return _effective(_split(_rank_normalise(draws)))


def ess_tail(draws: Array) -> float:
    """The smaller effective sample size of the 5 % and 95 % quantile indicators; draws of shape (chain, draw)."""
    draws = np.asarray(draws, dtype=float)
    found = []
    for level in (0.05, 0.95):
        below = (draws <= np.quantile(draws, level)).astype(float)
        if np.ptp(below) > 0:
            found.append(_effective(_split(below)))
    return min(found) if found else float(draws.size)
