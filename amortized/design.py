"""Which x positions training sees: how many points, how they are spaced, how far the forecast reaches."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybrid.models.checks import as_integer, is_real
from hybrid.models.coordinates import Frame, Unit, get_coordinates
from hybrid.models.errors import FileFormatError, InvalidArgumentError

FORMAT = 1
SPACINGS = ("linear", "log", "geometric", "irregular")
MEASURED = 20  # measurements, at least, behind a context that shows the best so far
MOST_POINTS = 10**6
MOST_DECADES = 50.0  # of a context, and from its end to the horizon
NEW_BESTS = 0.25  # of the contexts that are the best so far, the share in which only new bests are reported


class Reported(NamedTuple):
    """How the measurements of a batch of curves become its contexts."""

    best: Tensor  #: (B,) True where values are the best so far
    new_best: Tensor  #: (B,) True where of these only new bests are reported, besides the points that always are
    kept: Tensor  #: (B, N) True on the measurements that are reported
    always: Tensor  #: (B, N) True on the first, the middle and the last one


class DesignBatch(NamedTuple):
    """Positions of a batch of curves in the raw scale, in which the last context x is 1."""

    x_context: Tensor  #: (B, N) in increasing order; 1 where the mask is False
    mask: Tensor  #: (B, N) True on the first n_b points of curve b
    x_target: Tensor  #: (B, M) in increasing order
    horizon: Tensor  #: (B,) the largest x that the forecast is about, > 1
    reported: Reported | None = None  #: None where every context is its measurements as they are

    def rows(self, rows: Tensor, size: int) -> "DesignBatch":
        """Some of the curves, with contexts of at most `size` points."""
        parts = (self.x_context[rows, :size], self.mask[rows, :size], self.x_target[rows], self.horizon[rows])
        if self.reported is None:
            return DesignBatch(*parts)
        best, new_best, kept, always = self.reported
        return DesignBatch(*parts, Reported(best[rows], new_best[rows], kept[rows, :size], always[rows, :size]))


def _log_position(log_width: Tensor, power: Tensor, share: Tensor) -> Tensor:
    """log x at a share of the way from x = exp(-log_width) to x = 1, even in x^power; power 0 is even in log x."""
    curved = torch.log1p((1.0 - share) * torch.expm1(-power * log_width)) / power.clamp(min=1e-3)
    curved = torch.where(curved.isinf(), -log_width, curved)  # over more decades than a float has digits x would round to 0
    return torch.where(power < 1e-3, (share - 1.0) * log_width, curved)


@dataclasses.dataclass(frozen=True)
class Design:
    """The distribution of x positions from which curves for training are drawn.

    Parameters
    ----------
    context
        Smallest and largest number of context points; log-uniform between them.
    targets
        Number of targets of every curve.
    spacing
        Probabilities of the spacings: "linear"; "log", even in log x; "geometric", each x a constant factor times the one
        before; "irregular", random positions, uniform in x^power with power ~ U(0, 1).
    factor
        Range of the factor of geometric spacing, log-uniform. The x range then follows from the number of points, and may be
        narrower than `decades`, never wider.
    decades
        log10(last / first context x), uniform between the two.
    horizon
        Horizon over the last context x, log-uniform.
    repeated
        Probability that a curve has repeats: each point then takes the x of the one before with probability r ~ U(0, 1).
    interpolated
        Probability of a target to lie inside the context's range; the others lie between the last context x and the horizon.
        Both are uniform in x^power, with power ~ U(0, 1) per curve.
    before
        Probability that a target lies before the first context x instead, uniform in log x, down to a distance that is
        distributed as the horizon's: the first context x over it is log-uniform in `horizon`. For priors in ratio coordinates.
    best_so_far
        Probability that a context is the best result so far at each x, as many published curves are: the lowest of all
        measurements up to there, or the highest if the last one is above the first. Such a context is thinner than the
        measurements behind it, of which there are 20 or more, by a share that is log-uniform, to places even in their number
        or in log x; and of one in four only the new bests are left. Targets are measurements as they are: they scatter more
        than such a context does, to its worse side.

    Raises
    ------
    InvalidArgumentError
        If a range is empty or outside what it may be, or the probabilities of the spacings do not sum to 1.
    """

    context: tuple[int, int] = (3, 500)
    targets: int = 32
    spacing: tuple[tuple[str, float], ...] = tuple((name, 0.25) for name in SPACINGS)
    factor: tuple[float, float] = (1.1, 10.0)
    decades: tuple[float, float] = (1.0, 7.0)
    horizon: tuple[float, float] = (1.2, 300.0)
    repeated: float = 0.1
    interpolated: float = 0.2
    best_so_far: float = 0.0
    before: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("context", 3.0), ("factor", 1.0), ("decades", 0.0), ("horizon", 1.0)):
            try:
                low, high = getattr(self, name)
                if not (is_real(low) and is_real(high)):
                    raise TypeError
            except (TypeError, ValueError):
                raise InvalidArgumentError(f"{name} must be a range (low, high), got {getattr(self, name)!r}") from None
            if name != "context":
                object.__setattr__(self, name, (float(low), float(high)))
            lowest_is_allowed = name == "context"
            if not (low <= high < math.inf and (low > least or (lowest_is_allowed and low == least))):
                bound = "at least" if lowest_is_allowed else "above"
                raise InvalidArgumentError(f"{name} must be a range (low, high) with low {bound} {least:g}, got {low}, {high}")
        if self.decades[1] > MOST_DECADES or self.horizon[1] > 10.0**MOST_DECADES:
            raise InvalidArgumentError(
                f"contexts and horizons must span at most {MOST_DECADES:g} decades, got decades {self.decades} and horizons "
                f"{self.horizon}"
            )
        object.__setattr__(self, "context", tuple(as_integer(size, "context", 3, MOST_POINTS) for size in self.context))
        object.__setattr__(self, "targets", as_integer(self.targets, "targets", 1, MOST_POINTS))
        for name in ("repeated", "interpolated", "best_so_far", "before"):
            value = getattr(self, name)
            if not is_real(value) or not 0.0 <= value <= 1.0:
                raise InvalidArgumentError(f"{name} must be a probability, got {value!r}")
            object.__setattr__(self, name, float(value))
        try:
            pairs = self.spacing.items() if isinstance(self.spacing, Mapping) else self.spacing
            object.__setattr__(self, "spacing", tuple((str(name), float(share)) for name, share in pairs))
        except (TypeError, ValueError):
            raise InvalidArgumentError(f"spacing must pair names with probabilities, got {self.spacing!r}") from None
        names = [name for name, _ in self.spacing]
        if len(set(names)) != len(names) or not set(names) <= set(SPACINGS):
            raise InvalidArgumentError(f"spacing must name each of {', '.join(SPACINGS)} at most once, got {', '.join(names)}")
        shares = [share for _, share in self.spacing]
        if any(not share >= 0 for share in shares) or abs(sum(shares) - 1.0) > 1e-9:
            raise InvalidArgumentError(f"the probabilities of the spacings must sum to 1, got {shares}")

    def to_dict(self) -> dict[str, Any]:
        """The whole specification, JSON-ready."""
        return json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "Design":
        """Rebuild a design from `to_dict`.

        Raises
        ------
        FileFormatError
            If the description lacks a field, has one too many, or a field has the wrong form.
        """
        try:
            values = dict(description)
            if values.pop("format") != FORMAT:
                raise FileFormatError(f"this design was written in another format than {FORMAT}")
            names = {f.name for f in dataclasses.fields(cls)}
            if set(values) != names:
                raise FileFormatError(f"a design has the fields {', '.join(sorted(names))}, got {', '.join(sorted(values))}")
            for name in ("context", "factor", "decades", "horizon"):
                low, high = values[name]
                values[name] = (low, high)
            values["spacing"] = tuple((str(name), float(share)) for name, share in values["spacing"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(f"not a description of a design: {error}") from None

    @property
    def earliest(self) -> float:
        """Where the earliest targets lie: x over the first context x, at most 1."""
        return 1.0 / self.horizon[1] if self.before else 1.0

    @property
    def fingerprint(self) -> str:
        """A hash of the whole specification: 16 hexadecimal digits."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def sample(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> DesignBatch:
        """Draw the positions of `batch` curves.

        Parameters
        ----------
        batch
            Number of curves B, at least 1.
        generator
            The only source of randomness; tensors lie on its device.
        dtype
            Of the positions.

        Returns
        -------
        DesignBatch with N the largest context of the batch, and M = `targets`.
        """
        if batch < 1:
            raise InvalidArgumentError(f"batch must be at least 1, got {batch}")
        device = generator.device

        def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
            # Single precision would collapse neighbouring positions of a wide linear context.
            return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64, device=device)

        def log_uniform(low: float, high: float) -> Tensor:
            return uniform(batch, 1, low=math.log(low), high=math.log(high))

        least, most = self.context
        size = log_uniform(least, most + 1).exp().long().clamp(least, most)
        best = torch.zeros_like(size, dtype=torch.bool)
        if self.best_so_far:
            best = uniform(batch, 1) < self.best_so_far
            many = log_uniform(min(MEASURED, most), most + 1).exp().long().clamp(least, most)
            size = torch.where(best, many, size)
        index = torch.arange(int(size.max()), device=device)
        mask = index < size

        shares = [dict(self.spacing).get(name, 0.0) for name in SPACINGS]
        probabilities = torch.tensor(shares, dtype=torch.float32, device=device)
        kind = torch.multinomial(probabilities, batch, replacement=True, generator=generator)[:, None]
        log_width = math.log(10.0) * uniform(batch, 1, low=self.decades[0], high=self.decades[1])
        stepped = ((size - 1) * log_uniform(*self.factor)).clamp(max=math.log(10.0) * self.decades[1])
        log_width = torch.where(kind == SPACINGS.index("geometric"), stepped, log_width)
        power = torch.where(kind == SPACINGS.index("irregular"), uniform(batch, 1), 0.0)
        power = torch.where(kind == SPACINGS.index("linear"), 1.0, power)

        even = index.double() / (size - 1)
        random = torch.where(mask, uniform(batch, len(index)), torch.inf).sort(1).values
        first, last = random[:, :1], random.gather(1, size - 1)
        random = (random - first) / (last - first)
        share = torch.where(kind == SPACINGS.index("irregular"), random, even)
        share = self._repeat(share, index, size, uniform(batch, 1), uniform(batch, 1), uniform(batch, len(index)))
        x_context = torch.where(mask, _log_position(log_width, power, share.clamp(0.0, 1.0)).exp(), 1.0)

        log_horizon = log_uniform(*self.horizon)
        shape, power = (batch, self.targets), uniform(batch, 1)
        inside = _log_position(log_width, power, uniform(*shape))
        beyond = log_horizon + _log_position(log_horizon, power, uniform(*shape))
        log_target = torch.where(uniform(*shape) < self.interpolated, inside, beyond)
        if self.before:
            earlier = -log_width - log_uniform(*self.horizon) * uniform(*shape)
            log_target = torch.where(uniform(*shape) < self.before, earlier, log_target)
        x_target = log_target.sort(1).values.exp()
        drawn = DesignBatch(x_context.to(dtype), mask, x_target.to(dtype), log_horizon.exp()[:, 0].to(dtype))
        if not self.best_so_far:
            return drawn
        new_best, by_number, thin = uniform(3, batch, 1)
        where = torch.where(by_number < 0.5, index.float() / (size - 1), 1.0 + x_context.log() / log_width)
        place = (where * 3.0 * ((size.float() / 3.0).log() * thin).exp()).floor()
        always = ((index == 0) | (index == size // 2) | (index == size - 1)) & mask
        starts = torch.nn.functional.pad(place.diff(dim=1) > 0, (1, 0))
        kept = torch.where(best, (starts | always) & mask, mask)
        return drawn._replace(reported=Reported(best[:, 0], (best & (new_best < NEW_BESTS))[:, 0], kept, always))

    def _repeat(self, share: Tensor, index: Tensor, size: Tensor, chosen: Tensor, rate: Tensor, coin: Tensor) -> Tensor:
        """Let points take the place of the one before, in the curves chosen; the two ends stay at 0 and 1."""
        # The middle point always starts a place of its own, so that at least two are left.
        own = (coin > rate) | (chosen >= self.repeated) | (index == 0) | (index == size // 2)
        source = torch.where(own, index, 0).cummax(1).values
        share = share.gather(1, source)
        return share / share.gather(1, size - 1)


def frames(designs: DesignBatch, coordinates: str) -> Frame:
    """The frames of a batch of curves, as `Coordinates.frame` gives them one by one, with a y scale of 1.

    Parameters
    ----------
    designs
        Positions in the raw scale.
    coordinates
        "ratio" or "unit".

    Returns
    -------
    Frame whose fields have shape (B, 1).
    """
    x, mask = designs.x_context, designs.mask
    first = torch.where(mask, x, torch.inf).amin(1, keepdim=True)
    last = torch.where(mask, x, -torch.inf).amax(1, keepdim=True)
    horizon, zero, one = designs.horizon[:, None], torch.zeros_like(first), torch.ones_like(first)
    system = get_coordinates(coordinates)
    if isinstance(system, Unit):
        scale = (horizon - first) / (1.0 - system.low)
        shift = first - system.low * scale
        return Frame(shift, scale, one, system.low * one, (last - shift) / scale, one)
    return Frame(zero, last, one, first / last, one, horizon / last)
