"""Moves of Markov chains that make resampled draws different again, without changing what they are draws of."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 40
JUMP = 2.38  # over the root of the number of dimensions; optimal for normal targets (Roberts, Gelman and Gilks 1997)
SHORTEST = 0.05  # of the longest jumps: all sizes between occur, since the widths are not known
BLUR = 1e-3  # of the differences of two draws, so that any point can be reached


def moved(
    z: Tensor, log_p: Callable[[Tensor], Tensor], cloud: Tensor, spreads: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Steps of random-walk Metropolis from each of the draws: resample-move of Gilks and Berzuini (2001, JRSS B 63, 127-146).

    Jumps are differences of two draws of the cloud (ter Braak 2006, Statistics and Computing 16, 239-249, with a cloud that
    stays as it is) and steps of the Laplace approximations, by turns. Both are symmetric, so that the target is kept.

    Parameters
    ----------
    z
        Draws, shape (n, d).
    log_p
        Log density of the target up to a constant, from shape (n, d) to (n,); -inf where impossible.
    cloud
        Draws that are spread like the target or wider, shape (m, d).
    spreads
        Steps of one sd along each axis, shape (modes, d, d), one axis in each column.
    generator
        Source of randomness, on the device of the draws.

    Returns
    -------
    The draws after STEPS steps, and their log density.
    """
    n, d = z.shape
    at = log_p(z)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=z.dtype, device=z.device)

    for step in range(STEPS):
        noise = torch.randn((n, d), generator=generator, dtype=z.dtype, device=z.device)
        length = JUMP * SHORTEST ** uniform(n, 1)
        if step % 2:
            mode = (uniform(n) * len(spreads)).long()
            jump = length / math.sqrt(d) * (spreads[mode] @ noise[..., None])[..., 0]
        else:
            one, other = (uniform(2, n) * len(cloud)).long()
            jump = length / math.sqrt(2 * d) * (cloud[one] - cloud[other]) * (1.0 + BLUR * noise)
        found = log_p(z + jump)
        accept = uniform(n).log() < found - at
        z, at = torch.where(accept[:, None], z + jump, z), torch.where(accept, found, at)
    return z, at
