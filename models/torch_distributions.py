"""torch distributions that torch itself lacks."""

import math
from typing import Any

import torch
from torch.distributions import constraints

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class PositiveNormal(torch.distributions.Distribution):
    """Normal(loc, scale) truncated to y > 0, for loc >= 0.

    Parameters
    ----------
    loc, scale
        Location and scale of the untruncated normal; tensors that broadcast.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.positive
    has_rsample = False

    def __init__(self, loc: Any, scale: Any) -> None:
        self.loc, self.scale = torch.broadcast_tensors(torch.as_tensor(loc), torch.as_tensor(scale))
        super().__init__(self.loc.shape, validate_args=False)

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:
        """Draws by inversion of the survival function, which keeps precision in the upper tail."""
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        mass = torch.special.ndtr(self.loc / self.scale)
        tiny = torch.finfo(self.loc.dtype).tiny
        y = self.loc - self.scale * torch.special.ndtri((uniform * mass).clamp(min=tiny))
        positive: torch.Tensor = y.clamp(min=tiny)
        return positive

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log density; -inf where value <= 0."""
        z = (value - self.loc) / self.scale
        inside = -0.5 * z * z - self.scale.log() - _LOG_SQRT_2PI - torch.special.log_ndtr(self.loc / self.scale)
        return torch.where(value > 0, inside, -torch.inf)
