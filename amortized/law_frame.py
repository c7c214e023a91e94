"""A law fitted to the context by Levenberg-Marquardt: the second frame of reference, which extrapolates as scaling laws do.

The smoother says where the observed curve runs; a law says how it goes on. For a prior with continuous parameters its own law
is fitted, for a mixture or a simulator a broken power law. Over the unconstrained parameters, standardised by their prior to
s, with unit normal prior, and the noise scale sigma, what is minimised is

    F(s, sigma) = sum_i (v_i - f(x_i; s))^2 / (2 sigma^2) + nu log sigma + |s|^2 / 2 + (log sigma - mu)^2 / (2 tau^2),

sigma at its best for each s, with nu the degrees of freedom: the number of points less that of the parameters, and in the end
less that of those which the data fix (as restricted maximum likelihood has it). Several starts from a bank of prior draws; the
two best modes that differ are kept, each with the Gauss-Newton curvature J'J / sigma^2 + I (a Laplace approximation: MacKay
1992, Neural Computation 4, 448-472). Nothing here is the posterior: it only has the right place and size, so that a network in
single precision can state the rest.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import biject_to, identity_transform

from hybrid.amortized.groups import Groups, Points, gather, group, rows_of, with_rows
from hybrid.models.coordinates import Frame
from hybrid.models.prior import AbstractPrior, Prior
from hybrid.models.registry import get_prior
from hybrid.models.torch_random import seeded

MODES = 2
CONDITIONAL_STEPS = 4
COARSE = 16  # points that the starts are fitted to
KEPT = 0.75  # a descent goes on with the rows that have not converged where they are less than this share
BANK = 256
PRIOR_DRAWS = 20_000
DIFFERENCE = 1e-5  # of s, for derivatives
FARTHEST = 300.0  # of an unconstrained parameter, whose exponential is then neither 0 nor infinite
FARTHEST_STEP = 2.0  # of a component of s, in prior sds
DISTINCT = 0.3  # distance in s at which two modes count as two while they are chosen, and a tenth of it at the end
LAMBERT_STEPS = 3
LEAST_FREE = 0.5  # degrees of freedom of the noise, where there are no more points than parameters
CONVERGED = 2e-4  # nats by which F may still fall
UNSETTLED = 2.0  # nats: a context whose F would still fall by more after all rounds gets
PATIENCE = 50  # further steps, and two rounds more
LEAST_SIGMA = 1e-7
IMPOSSIBLE = 1e30
NOISES = ("lognormal", "normal", "truncated_normal")
DEFAULT = "bnsl"


class Search(NamedTuple):
    """How much is tried to find the modes."""

    starts: int  #: members of the bank that are fitted to the merged points
    first_steps: int  #: after which the best go on
    best: int
    coarse_steps: int  #: of the best, to the merged points
    rounds: int  #: with all points; the groups are corrected at the beginning of each
    fine_steps: int  #: of each round
    tokens: int = (
        0  #: of a last round, where there are more points than the network's tokens: merging loses what tells of a break
    )


SEARCHES = {
    "quick": Search(8, 3, 4, 10, 3, 5),
    "thorough": Search(16, 4, 8, 15, 3, 8),
    "fine": Search(16, 4, 8, 15, 3, 8, tokens=128),
}


class Data(NamedTuple):
    """What the law is fitted to."""

    groups: Groups
    frame: Frame
    within: Tensor  #: (B,) sum of squares inside the groups

    def take(self, rows: Tensor) -> "Data":
        return rows_of(self, rows)  # type: ignore[no-any-return]

    def repeat(self, times: int) -> "Data":
        """All rows so many times, one after another."""
        return self.take(torch.arange(len(self.groups.v), device=self.groups.v.device).repeat(times))


class Modes(NamedTuple):
    """The law's modes for a batch of contexts; M = MODES, d parameters besides sigma."""

    s: Tensor  #: (B, M, d)
    root: Tensor  #: (B, M, d, d) lower Cholesky factor R of the curvature: R'(s - mode) has unit covariance
    spread: Tensor  #: (B, M, d, d) L = R^-T, whose columns are steps of one sd
    log_sigma: Tensor  #: (B, M)
    log_sigma_sd: Tensor  #: (B, M)
    weight: Tensor  #: (B, M) by Laplace evidence; 0 where the second mode is the first again
    data: Data  #: what the law was fitted to, merged to the network's tokens such that the first mode's bend biases nothing


class Conditional(NamedTuple):
    """The k nearly linear parameters and sigma given all others, by a Laplace approximation; see `LawFrame.conditional`."""

    centre: Tensor  #: (..., B, k) of s
    root: Tensor  #: (..., B, k, k) lower Cholesky factor R: R'(s - centre) has unit covariance
    log_sigma: Tensor  #: (..., B)
    log_sigma_sd: Tensor  #: (..., B)


def frame_prior(prior: AbstractPrior) -> Prior:
    """The prior whose law is fitted: the prior itself where it can be, else a broken power law.

    It can be where all parameters are continuous, x is divided by the last context x, and sigma is any positive number.
    """
    if isinstance(prior, Prior) and prior.is_continuous and prior.noise.name in NOISES and prior.coordinates == "ratio":
        sigma = next(p.distribution.family for p in prior.parameters if p.name == "sigma")
        if sigma not in ("Uniform", "Beta"):
            return prior
    found = get_prior(DEFAULT)
    assert isinstance(found, Prior)
    return found


class _State(NamedTuple):
    """Where a descent is, row by row."""

    trial: Tensor  # (B, d) where F is evaluated next
    s: Tensor  # (B, d) the best so far
    value: Tensor  # (B,) F there
    squares: Tensor  # (B,) sum of squared residuals there
    gram: Tensor  # (B, d, d) J'J / sigma^2 there
    slope: Tensor  # (B, d) minus the gradient of F there
    damping: Tensor  # (B,)
    active: Tensor  # (B,) False where it has converged

    def take(self, rows: Tensor) -> "_State":
        return rows_of(self, rows)  # type: ignore[no-any-return]

    def put(self, rows: Tensor | None, part: "_State") -> "_State":
        """This state with some rows replaced; None means all."""
        return part if rows is None else with_rows(self, rows, part)


class _Moving(NamedTuple):
    """Which components of s a descent moves."""

    which: slice | list[int]
    steps: Tensor  # (1 + k, 1, d): none, and a small one along each


class LawFrame(nn.Module):
    """Fits the law of a prior to contexts.

    Parameters
    ----------
    prior
        A prior with continuous parameters; sigma is its noise scale.
    logarithmic
        Whether values are log y.
    search
        "quick", "thorough", which takes twice the time, or "fine", which merges fewer points in the end.
    """

    loc: Tensor
    scale: Tensor
    noise: Tensor
    bank: Tensor

    def __init__(self, prior: Prior, logarithmic: bool, search: str = "quick") -> None:
        super().__init__()
        self.prior, self.logarithmic, self.search = prior, logarithmic, SEARCHES[search]
        self.names = tuple(p.name for p in prior.parameters if p.name != "sigma")
        self.size = len(self.names)
        self.inner = [i for i, name in enumerate(self.names) if name in prior.law.nearly_linear]
        self._known: dict[tuple[torch.dtype, torch.device], list[Any]] = {}
        self._grouped: dict[tuple[torch.dtype, torch.device], list[tuple[Any, list[int]]]] = {}
        with seeded(0):
            draws = prior.draw_torch(PRIOR_DRAWS, torch.float64)
            bank = torch.randn(BANK, self.size, dtype=torch.float64)
        real = self.unconstrain(draws)
        log_sigma = draws["sigma"].log()
        self.register_buffer("loc", real.mean(0))
        self.register_buffer("scale", real.std(0))
        self.register_buffer("noise", torch.stack([log_sigma.mean(), log_sigma.std()]))
        self.register_buffer("bank", bank)

    def _bijections(self, like: Tensor) -> list[Any]:
        key = (like.dtype, like.device)
        if key not in self._known:  # making them takes longer than using them
            distributions = (p.distribution for p in self.prior.parameters if p.name != "sigma")
            self._known[key] = [biject_to(d.torch(like.dtype, like.device).support) for d in distributions]
        return self._known[key]

    def _kinds(self, like: Tensor) -> list[tuple[Any, list[int]]]:
        """Each different bijection, with the parameters that it belongs to: short tensors cost as much as their number."""
        key = (like.dtype, like.device)
        if key not in self._grouped:
            kinds: list[tuple[Any, list[int]]] = []
            for i, bijection in enumerate(self._bijections(like)):
                members = next((members for known, members in kinds if known == bijection), None)
                if members is None:
                    kinds.append((bijection, [i]))
                else:
                    members.append(i)
            self._grouped[key] = kinds
        return self._grouped[key]

    def unconstrain(self, theta: Any) -> Tensor:
        """Parameters by name, each of shape (...), on the real line, shape (..., d)."""
        bijections = self._bijections(theta[self.names[0]])
        return torch.stack([b.inv(theta[k]) for k, b in zip(self.names, bijections, strict=True)], -1)

    def constrain(self, s: Tensor) -> dict[str, Tensor]:
        """Parameters by name, each of shape (...), from s of shape (..., d)."""
        real = s * self.scale + self.loc
        columns: dict[int, Tensor] = {}
        for bijection, members in self._kinds(real):  # what may be any number is what it is
            whole = (real if bijection == identity_transform else bijection(real.clamp(-FARTHEST, FARTHEST))).unbind(-1)
            columns.update((i, whole[i]) for i in members)
        return {name: columns[i] for i, name in enumerate(self.names)}

    def curve(self, s: Tensor, x: Tensor, frame: Frame) -> Tensor:
        """v along the law: s of shape (..., B, d), x of shape (B, n), fields of the frame (B, 1); shape (..., B, n)."""
        theta = {**self.constrain(s), "sigma": torch.ones_like(s[..., 0])}
        y: Tensor = self.prior.mean(theta, x, frame)
        return y.log() if self.logarithmic else y

    def _linearise(self, s: Tensor, x: Tensor, frame: Frame, steps: Tensor) -> tuple[Tensor, Tensor]:
        """The curve (B, n) and its derivatives with respect to k components of s (B, n, k), by steps (1 + k, 1, d) of them."""
        found = self.curve(s + steps, x, frame)
        return found[0], ((found[1:] - found[0]) / DIFFERENCE).movedim(0, -1)

    def _best_log_sigma(self, squares: Tensor, free: Tensor) -> Tensor:
        """log sigma that minimises F for sums of squared residuals (B,).

        With w = 2 (log sigma - mu + tau^2 free), w e^w = 2 tau^2 squares exp(2 tau^2 free - 2 mu): Lambert's function, by
        Newton's method on w + log w = z, which is concave.
        """
        mu, tau = self.noise
        base = mu - tau**2 * free
        z = (2.0 * tau**2 * squares.clamp(min=LEAST_SIGMA**2)).log() - 2.0 * base
        w: Tensor = nn.functional.softplus(z)
        z = 1.0 + z
        for _ in range(LAMBERT_STEPS):
            w = w * (z - w.log()) / (1.0 + w)
        found: Tensor = base + 0.5 * w
        return found.clamp(min=math.log(LEAST_SIGMA))

    def _advance(self, state: _State, data: Data, moving: _Moving) -> _State:
        """One step of Levenberg-Marquardt: try, keep what is better, and choose the next trial."""
        groups, trial, which = data.groups, state.trial, moving.which
        mu, tau = self.noise
        found, jacobian = self._linearise(trial, groups.x, data.frame, moving.steps)
        residual = groups.v - found
        squares = (groups.number * residual.square()).sum(1) + data.within
        possible = torch.isfinite(squares + 0.0 * jacobian.sum((1, 2)))  # 0 times what is not finite is NaN
        squares = torch.where(possible, squares, 1.0)
        free = (groups.number.sum(1) - self.size).clamp(min=LEAST_FREE)
        log_sigma = self._best_log_sigma(squares, free)
        scaled = (-2.0 * log_sigma).exp()
        value = free * log_sigma + 0.5 * squares * scaled + 0.5 * ((log_sigma - mu) / tau).square()
        value = value + 0.5 * trial.square().sum(1)
        better = possible & (value < state.value) & state.active
        weighted = jacobian * (groups.number * scaled[:, None])[..., None]
        gram = torch.where(better[:, None, None], weighted.mT @ jacobian, state.gram)
        slope = torch.where(better[:, None], (weighted.mT @ residual[..., None])[..., 0] - trial[:, which], state.slope)
        damping = torch.where(better, 0.2 * state.damping, 6.0 * state.damping).clamp(1e-6, 1e8)
        ridge = 1.0 + damping[:, None] * (gram.diagonal(dim1=1, dim2=2) + 1.0)
        factor = torch.linalg.cholesky_ex(gram + torch.diag_embed(ridge))[0]
        move = torch.cholesky_solve(slope[..., None], factor)[..., 0].nan_to_num(0.0)
        farthest = move.abs().amax(1, keepdim=True)
        s = torch.where(better[:, None], trial, state.s)
        ahead = s.clone()
        ahead[:, which] += move * (FARTHEST_STEP / farthest.clamp(min=FARTHEST_STEP))
        return _State(
            ahead,
            s,
            torch.where(better, value, state.value),
            torch.where(better, squares, state.squares),
            gram,
            slope,
            damping,
            state.active & ((slope * move).sum(1) > CONVERGED),
        )

    def _descend(self, s: Tensor, data: Data, steps: int, moving: Sequence[int] | None = None) -> _State:
        """Levenberg-Marquardt from s (B, d), over all its components or some of them.

        Contexts that have converged rest, and are left out once they are many.
        """
        every = DIFFERENCE * torch.eye(self.size, dtype=s.dtype, device=s.device)
        which = slice(None) if moving is None else list(moving)
        steps_of = torch.cat([torch.zeros_like(every[:1]), every[which]])[:, None]
        one, count = torch.ones_like(s[:, 0]), len(steps_of) - 1
        gram, slope = s.new_zeros(len(s), count, count), s.new_zeros(len(s), count)
        state = _State(s, s, IMPOSSIBLE * one, one, gram, slope, 0.05 * one, one > 0)
        whole, rows = state, None
        for step in range(steps + 1):
            state = self._advance(state, data, _Moving(which, steps_of))
            left = int(state.active.sum())
            if step == steps or left == 0:
                break
            if left < KEPT * len(state.active):
                keep = state.active.nonzero()[:, 0]
                whole = whole.put(rows, state)
                rows = keep if rows is None else rows[keep]
                state, data = state.take(keep), data.take(keep)
        return whole.put(rows, state)

    def _starts(self, groups: Groups, frame: Frame) -> Tensor:
        """The members of the bank that fit best once their level, the first parameter of every shipped law, is right."""
        batch = len(groups.v)
        curves = self.curve(self.bank[:, None].expand(-1, batch, -1), groups.x, frame)
        number, count = groups.number, groups.number.sum(1, keepdim=True)
        if self.logarithmic:
            shift = (number * (groups.v - curves)).sum(-1, keepdim=True) / count
            residual = groups.v - curves - shift
        else:
            factor = (number * groups.v * curves).sum(-1, keepdim=True) / (number * curves.square()).sum(-1, keepdim=True)
            residual, shift = groups.v - factor * curves, factor.clamp(min=1e-3).log()
        squares = (number * residual.square()).sum(-1)
        chosen = torch.where(squares.isfinite(), squares, IMPOSSIBLE).argsort(dim=0, stable=True)[: self.search.starts]
        starts = self.bank[chosen]  # (starts, B, d)
        if self.names[0] == "y_first":
            moved = shift[..., 0].gather(0, chosen).nan_to_num(0.0) / self.scale[0]
            starts = torch.cat([starts[..., :1] + moved[..., None].clamp(-6.0, 6.0), starts[..., 1:]], -1)
        return starts

    def _search(self, xi: Tensor, v: Tensor, mask: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """Two starts for each context from a fit of several to its merged points, shape (2, B, d), and whether both count."""
        batch = len(v)
        data = Data(group(xi, v, mask, COARSE), frame, v.new_zeros(batch))
        s = self._starts(data.groups, frame)
        search = self.search
        for count, steps in ((search.starts, search.first_steps), (search.best, search.coarse_steps)):
            found = self._descend(s[:count].flatten(0, 1), data.repeat(min(count, len(s))), steps)
            s, value = found.s.view(-1, batch, self.size), found.value.view(-1, batch)
            order = value.argsort(dim=0, stable=True)
            s, value = s.gather(0, order[..., None].expand_as(s)), value.gather(0, order)

        first, others = s[0], torch.where((s - s[0]).abs().amax(-1) > DISTINCT, value, IMPOSSIBLE)
        exists = others.amin(0) < IMPOSSIBLE
        second = s.gather(0, others.argmin(0)[None, :, None].expand(1, batch, self.size))[0]
        return torch.stack([first, torch.where(exists[:, None], second, first)]), exists

    def _merged(self, s: Tensor, points: Points, data: Data) -> Data:
        """The groups near s (B, d), such that the law's bend inside a group biases nothing.

        The mean of a group's residuals, which are taken at all points, is added to the law at the group's mean position.
        """
        residual = torch.where(points.mask, points.v - self.curve(s, points.x, data.frame), 0.0).nan_to_num(0.0)
        number = data.groups.number
        mean = gather(residual, data.groups.token, number.shape[1]) / number.clamp(min=1.0)
        within = (residual.square().sum(1) - (number * mean.square()).sum(1)).clamp(min=0.0)
        at = self.curve(s, data.groups.x, data.frame)
        merged = torch.where((number > 1.0) & at.isfinite(), mean + at, data.groups.v)
        return data._replace(groups=data.groups._replace(v=merged), within=within)

    def _refined(self, s: Tensor, points: Points, data: Data, rounds: Sequence[int]) -> tuple[_State, Data]:
        """Where descents from s (B, d) to all points end, by rounds of so many steps, and what the last one was fitted to."""
        for steps in rounds:
            merged = self._merged(s, points, data)
            found = self._descend(s, merged, steps)
            s = found.s
        return found, merged

    def forward(self, xi: Tensor, v: Tensor, mask: Tensor, groups: Groups, frame: Frame, starts: Tensor | None = None) -> Modes:
        """The modes of contexts.

        Parameters
        ----------
        xi, v, mask
            As for `group`.
        groups
            The points merged to tokens.
        frame
            Fields of shape (B, 1); x over the last context x is what the law sees.
        starts
            Where to begin, shape (MODES, B, d), if it is known.
        """
        batch = len(v)
        frame = _relative(frame)
        if starts is None:
            starts, exists = self._search(xi, v, mask, frame)
        else:
            exists = torch.ones(batch, dtype=torch.bool, device=v.device)
        points = Points(*(part.repeat(MODES, 1) for part in (xi.exp(), v, mask)))
        plain, fine = Data(groups, frame, v.new_zeros(batch)).repeat(MODES), self.search.fine_steps
        found, data = self._refined(starts.flatten(0, 1), points, plain, (fine,) * self.search.rounds)
        whole = plain
        if self.search.tokens:  # whatever the lengths in the batch: an answer must not depend on the other contexts
            whole = Data(group(xi, v, mask, self.search.tokens), frame, v.new_zeros(batch)).repeat(MODES)
            found, data = self._refined(found.s, points, whole, (fine,))
        root, eye = _root(found.gram)
        half = torch.linalg.solve_triangular(root, found.slope[..., None], upper=False)
        late = (0.5 * half.square().sum((1, 2)) > UNSETTLED).nonzero()[:, 0]
        if len(late):  # a narrow valley that bends, as where there is next to no noise
            end, merged = self._refined(found.s[late], rows_of(points, late), whole.take(late), (PATIENCE, fine, fine))
            found, data = found.put(late, end), with_rows(data, late, merged)
            root, eye = _root(found.gram)
        if whole is not plain:
            data = self._merged(found.s, points, plain)
        spread = torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False).mT
        # The data fix d - tr(C) of the parameters: sigma has that many fewer residuals to be told by.
        count = mask.sum(1).to(v.dtype).repeat(MODES)
        free = (count - self.size + spread.square().sum((1, 2))).clamp(min=LEAST_FREE)
        log_sigma = self._best_log_sigma(found.squares, free)
        evidence = (-found.value - root.diagonal(dim1=1, dim2=2).log().sum(1)).view(MODES, batch)
        s = found.s.view(MODES, batch, -1)
        again = (s[1] - s[0]).abs().amax(-1) < 0.1 * DISTINCT
        evidence = torch.stack([evidence[0], torch.where(again | ~exists, -IMPOSSIBLE, evidence[1])])
        better = (evidence[1] > evidence[0]).long()
        order = torch.stack([better, 1 - better], 1)  # (B, M): the likelier first

        def arranged(part: Tensor) -> Tensor:
            part = part.view(MODES, batch, *part.shape[1:]).transpose(0, 1)
            return part[torch.arange(batch, device=part.device)[:, None], order]

        log_sigma_sd = (2.0 * free + 1.0 / self.noise[1] ** 2).rsqrt()
        weight = evidence.softmax(0).T.gather(1, order)
        s, root, spread, log_sigma, log_sigma_sd = map(arranged, (s.flatten(0, 1), root, spread, log_sigma, log_sigma_sd))
        first = data.take(order[:, 0] * batch + torch.arange(batch, device=v.device))
        return Modes(s, root, spread, log_sigma, log_sigma_sd, weight, first)

    def conditional(self, s: Tensor, modes: Modes) -> Conditional:
        """The nearly linear parameters and sigma given all others, which are taken from s of shape (..., B, d).

        From the first mode's, a few steps over these alone: a function of the others and the context, whether or not it has
        converged. It goes along with a posterior that is bent or far from any mode, as Laplace approximations nested in
        a wider one do (Rue, Martino and Chopin 2009, JRSS B 71, 319-392).
        """
        ahead, shape = s.clone(), s.shape[:-1]
        ahead[..., self.inner] = modes.s[:, 0, self.inner].expand(*shape, -1)
        data = modes.data.repeat(ahead.numel() // self.size // len(modes.s))
        found = self._descend(ahead.flatten(0, -2), data, CONDITIONAL_STEPS, self.inner)
        root, _ = _root(found.gram)
        free = (data.groups.number.sum(1) - len(self.inner)).clamp(min=LEAST_FREE)
        log_sigma = self._best_log_sigma(found.squares, free)
        log_sigma_sd = (2.0 * free + 1.0 / self.noise[1] ** 2).rsqrt()
        parts = (found.s[:, self.inner], root, log_sigma, log_sigma_sd)
        return Conditional(*(part.view(*shape, *part.shape[1:]) for part in parts))

    def along(self, modes: Modes, x: Tensor, frame: Frame) -> Tensor:
        """The curve of each mode at x over the last context x (B, n), shape (M, B, n)."""
        return self.curve(modes.s.transpose(0, 1), x, _relative(frame))

    def forecast(self, modes: Modes, x: Tensor, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Curve, sd (the noise included) and bend of each mode at x over the last context x (B, n); shapes (M, B, n).

        The sd of the curve is from steps of one sd along each axis of the Laplace approximation, both ways; the bend is
        half the sum of the curve's changes, which is 0 where it is linear in the parameters.
        """
        frame = _relative(frame)
        centre, axes = modes.s.transpose(0, 1), modes.spread.permute(3, 1, 0, 2)  # (M, B, d), (axis, M, B, d)
        steps = torch.cat([torch.zeros_like(axes[:1]), axes, -axes])
        curves = self.curve(centre + steps, x, frame)
        middle = curves[0]
        up, down = (part - middle for part in curves[1:].split(self.size))
        noise = (2.0 * modes.log_sigma).exp().T[..., None]
        sd = (torch.maximum(up.square(), down.square()).sum(0) + noise).sqrt()
        return middle, sd, 0.5 * (up + down).sum(0)


def _root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor of the curvature, gram + I, shape (B, k, k); and I, which it is where there is none."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    root, failed = torch.linalg.cholesky_ex(gram + eye)
    return torch.where((failed == 0)[:, None, None], root, eye), eye


def _relative(frame: Frame) -> Frame:
    """The frame in which positions are x over the last context x."""
    one = torch.ones_like(frame.last)
    return Frame(0.0 * one, one, one, frame.first / frame.last, one, frame.horizon / frame.last)
