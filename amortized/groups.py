"""Points of contexts merged to a few tokens, and rows of batches of whatever tuples."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


def rows_of(value: Any, rows: Any) -> Any:
    """Some rows of a tensor, or of a tuple of such, nested to any depth."""
    return value[rows] if isinstance(value, Tensor) else type(value)(*(rows_of(part, rows) for part in value))


def with_rows(value: Any, rows: Tensor, new: Any) -> Any:
    """A tensor, or a tuple of such, nested to any depth, with some of its rows replaced."""
    if isinstance(value, Tensor):
        return value.index_copy(0, rows, new)
    return type(value)(*(with_rows(old, rows, part) for old, part in zip(value, new, strict=True)))


class Groups(NamedTuple):
    """Points merged to at most so many tokens."""

    token: Tensor  #: (B, N) the token that each point joins
    number: Tensor  #: (B, T) points of each token, float64
    x: Tensor  #: (B, T) exp of the mean of log(x / last context x)
    v: Tensor  #: (B, T) mean of v


class Points(NamedTuple):
    """All points of contexts."""

    x: Tensor  #: (B, N) over the last context x
    v: Tensor  #: (B, N)
    mask: Tensor  #: (B, N)


def group(xi: Tensor, v: Tensor, mask: Tensor, most: int) -> Groups:
    """Merge neighbouring points where there are more than `most`: where they are dense, in rank and in xi alike.

    Parameters
    ----------
    xi
        log(x / last context x), shape (B, N), in increasing order, 0 where the mask is False.
    v
        Values, shape (B, N), 0 where the mask is False.
    mask
        True on the points of the context, shape (B, N).
    most
        Tokens at most.
    """
    count = mask.sum(1, keepdim=True)
    rank = mask.cumsum(1) - 1
    width = -xi.amin(1, keepdim=True)
    place = 0.5 * (rank.float() / count) + 0.5 * (1.0 + xi / width)
    token = torch.where(count > most, (place * most).long().clamp(0, most - 1), rank)
    token = torch.where(mask, token, 0)
    size = min(mask.shape[1], most)
    known = mask.to(v.dtype)
    number, x_sum, v_sum = (gather(part, token, size) for part in (known, xi, v))
    number_or_one = number.clamp(min=1.0)
    return Groups(token, number, (x_sum / number_or_one).exp(), v_sum / number_or_one)


def gather(values: Tensor, token: Tensor, size: int) -> Tensor:
    """Sums of values (B, N) by the token that each belongs to, shape (B, size)."""
    return values.new_zeros(len(values), size).scatter_add_(1, token, values)
