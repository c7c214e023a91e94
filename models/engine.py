"""What an inference engine takes and gives: curves in coordinates in, posterior draws with a verdict out."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from hybrid.models.coordinates import Frame

Array = Any
Status = Literal["ok", "needs_review"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One curve to fit, in the prior's coordinates.

    Attributes
    ----------
    x, y
        The context, shape (n,), sorted by x.
    frame
        The frame that maps between these and the user's units.
    """

    x: np.ndarray
    y: np.ndarray
    frame: Frame

    @property
    def stream(self) -> int:
        """A number below 2^32 from the points alone: engines draw by it, whatever a curve's place in a batch or the order in
        which replicates are given."""
        order = np.lexsort((self.y, self.x))
        return zlib.crc32(self.x[order].tobytes() + self.y[order].tobytes())


@dataclasses.dataclass(frozen=True)
class EngineResult:
    """Draws from (an approximation of) the posterior of one problem.

    Attributes
    ----------
    draws
        Parameters by name, constrained, in coordinates, each of shape (chain, draw). A point estimate has shape (1, 1).
    sample_stats
        Per-draw statistics under ArviZ's names ("diverging", "energy", "lp", ...), each of shape (chain, draw); may be empty.
    status
        "ok", or "needs_review" where the draws should not be trusted as they are.
    reasons
        Why, one sentence each, with the remedy; none where status is "ok".
    info
        Facts for the verdict, JSON-ready: "method", and for samplers "max_rhat", "min_ess_bulk", "min_ess_tail", "divergences".
    predictive
        A predictive distribution with the methods of `hybrid.models.predictive.MixturePredictive`, where the engine has one of
        its own; None where it follows from the draws.
    """

    draws: Mapping[str, np.ndarray]
    sample_stats: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    status: Status = "ok"
    reasons: tuple[str, ...] = ()
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    predictive: Any = None
