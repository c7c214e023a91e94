"""Do the residuals scatter, or do they follow one another? A posterior predictive check of the law's shape."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import special

from hybrid.models.engine import Problem
from hybrid.models.prior import Prior
from hybrid.models.thresholds import MIN_FOLLOW

Array = Any
CHECKED = 200  # posterior draws that are looked at
REPLICATES = 20_000
SIMULATED = 500  # residuals, up to which replicates are drawn
FARTHEST_SCORE = 8.0  # sds; one outlier more cannot hide what the others do
OUTSIDE = "Outside what the network was trained on"  # begins the reason that says so
FEWEST = 4  # different x; fewer are too few to tell
QUIET = 0.01  # probability of so small a sum of squares of the scores under the model
FOLLOW_ONE_ANOTHER = (
    "The residuals follow one another instead of scattering, more than on the prior's own curves: it does not hold "
    "this curve, and its intervals may be too narrow. Compare another prior, such as 'nsl', or 'm4_drift' by "
    "engine='nuts', or train for a law of your own with `hybrid.train`."
)
RISES = (
    "y rises with x, as it hardly can under most priors: give what grows, such as an accuracy, as an error, 1 - accuracy, or "
    "take prior 'nsl'."
)


def _correlation(residuals: Array) -> Array:
    """Lag-1 autocorrelation of residuals with mean 0, over the last axis."""
    size = np.maximum(np.square(residuals).sum(-1), 1e-300)
    found: Array = (residuals[..., 1:] * residuals[..., :-1]).sum(-1) / size
    return found


@functools.lru_cache(maxsize=8)
def _replicated(size: int) -> Array:
    """Autocorrelations of so many independent standard normal variables, in increasing order.

    Those of many are normal, with the variance (n - 1) / (n (n + 2)) that holds for any number n.
    """
    if size > SIMULATED:
        sd = math.sqrt((size - 1) / (size * (size + 2)))
        return np.asarray(sd * special.ndtri((np.arange(REPLICATES) + 0.5) / REPLICATES))
    rng, block = np.random.default_rng(0), REPLICATES // 20
    return np.sort(np.concatenate([_correlation(rng.standard_normal((block, size))) for _ in range(REPLICATES // block)]))


def _scores(prior: Prior, theta: Mapping[str, Array], problem: Problem) -> tuple[Array, Array]:
    """Residuals as standard normal scores by the noise model, one for each different x, shape (draws, positions); and the log
    likelihood of each draw. Of draws whose curve is a number."""
    each = {name: np.asarray(value)[:, None] for name, value in theta.items()}
    with np.errstate(all="ignore"):
        level = prior.mean(theta, problem.x, problem.frame)
        below = prior.noise.cdf(problem.y, level, each)
        likelihood = prior.noise.log_prob(problem.y, level, each).sum(1)
    score = np.clip(special.ndtri(below), -FARTHEST_SCORE, FARTHEST_SCORE)
    starts = np.flatnonzero(np.diff(problem.x, prepend=-np.inf) > 0)
    number = np.diff(starts, append=problem.x.size)
    # Repeats at one x are independent given the curve, in whatever order they come.
    found: Array = np.add.reduceat(score, starts, axis=1) / np.sqrt(number)
    numbers = np.all(np.isfinite(found), axis=1)
    return found[numbers], np.where(np.isfinite(likelihood), likelihood, -np.inf)[numbers]


def _some_scores(prior: Prior, draws: Mapping[str, Array], problem: Problem) -> tuple[Array, Array]:
    """The scores and log likelihoods of some of the draws, evenly spaced, of any shape."""
    flat = {name: np.ravel(value) for name, value in draws.items()}
    size = next(iter(flat.values())).size
    rows = np.linspace(0, size - 1, min(CHECKED, size)).astype(int)
    return _scores(prior, {name: value[rows] for name, value in flat.items()}, problem)


def _likeliest(observed: Array, likelihood: Array) -> Array:
    """The scores of the draw under which the data are likeliest, shape (1, positions), where there is any."""
    return observed[[np.argmax(likelihood)]] if len(observed) else observed


def _probability(of: Callable[[Array], float], observed: Array) -> float:
    """What `of` makes of the scores, if there are enough of them, and of any draw."""
    if observed.shape[1] < FEWEST:
        return 1.0
    return of(observed) if len(observed) else float("nan")


def _follow(observed: Array) -> float:
    below = np.searchsorted(_replicated(observed.shape[1]), _correlation(observed))
    return float(1.0 - below.mean() / REPLICATES)


def _trend(observed: Array) -> float:
    count = observed.shape[1]
    line = np.arange(count) - 0.5 * (count - 1)
    share = (observed @ line) ** 2 / np.maximum((line @ line) * np.square(observed).sum(-1), 1e-300)
    return float(special.betaincc(0.5, 0.5 * (count - 1), share.clip(max=1.0)).mean())


def _is_quiet(observed: Array, likeliest: Array) -> bool:
    """Whether the likeliest of several draws leaves hardly any residuals for its noise, as it does of points without noise.

    What it leaves then is the difference of two smooth curves, which is no trend of the points. A single draw, as a point
    estimate, has another noise than the likeliest, and says nothing of this.
    """
    return len(observed) > 1 and bool(np.square(likeliest).sum() < special.chdtri(likeliest.shape[1], 1.0 - QUIET))


def _trend_of(observed: Array, likelihood: Array) -> float:
    likeliest = _likeliest(observed, likelihood)
    return 1.0 if _is_quiet(observed, likeliest) else _probability(_trend, likeliest)


def follow_probability(prior: Prior, draws: Mapping[str, Array], problem: Problem) -> float:
    """Posterior predictive probability that replicated residuals follow one another as much as the observed ones do.

    The discrepancy is the lag-1 autocorrelation of the residuals in the order of x, as scores that are independent standard
    normal variables under the model whatever its parameters are; so all replicates are those of white noise, and the
    probability is its average over the posterior draws (Gelman, Meng and Stern 1996, Statistica Sinica 6, 733-807). Draws bend
    towards the data, which makes it conservative: under the model it is small less often than it says. Up to eight points it
    is never very small, not even where all residuals lie on a line: see `trend_probability`.

    Parameters
    ----------
    prior
        The model.
    draws
        Posterior draws by name, constrained and in coordinates, of any shape.
    problem
        The curve; x in increasing order.

    Returns
    -------
    A probability, over the draws whose curve is a number, NaN where there is none; 1 where there are fewer than four different
    x, too few to tell.
    """
    return _probability(_follow, _some_scores(prior, draws, problem)[0])


def trend_probability(prior: Prior, draws: Mapping[str, Array], problem: Problem) -> float:
    """Probability that independent residuals keep to a line as much as those of the likeliest draw do.

    The discrepancy is the share of the scores' sum of squares that a line in the order of x takes, which is distributed as
    Beta(1/2, (n - 1)/2) for n scores that are independent standard normal variables. A law that follows a curve leaves no
    trend. One that cannot, as a law that only falls cannot follow what rises, leaves nothing else, and from five points on
    that is seen: under the draw that comes nearest to the data, as the average over draws that miss them by more would hide it.
    Where it comes so near that hardly anything is left for its noise, as of points without any, the probability is 1.

    Parameters and return value are those of `follow_probability`, but for the average: the probability is that of one draw.
    """
    return _trend_of(*_some_scores(prior, draws, problem))


def checked(prior: Prior, draws: Mapping[str, Array], problem: Problem) -> tuple[dict[str, float], tuple[str, ...]]:
    """Both probabilities by name, and what is to be said of the curve; the parameters are those of `follow_probability`."""
    observed, likelihood = _some_scores(prior, draws, problem)
    follow, trend = _probability(_follow, observed), _trend_of(observed, likelihood)
    return {"follow_probability": follow, "trend_probability": trend}, remarks(follow < MIN_FOLLOW, trend, problem)


def remarks(follows: bool, trend: float, problem: Problem) -> tuple[str, ...]:
    """What is to be said of a curve whose residuals follow one another or, by `trend_probability`, a line; else nothing."""
    if trend < MIN_FOLLOW and problem.y[-1] > problem.y[0]:
        return FOLLOW_ONE_ANOTHER, RISES
    return (FOLLOW_ONE_ANOTHER,) if follows or trend < MIN_FOLLOW else ()
