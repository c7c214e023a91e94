"""A fit as an xarray.DataTree in ArviZ's schema, and such trees in NetCDF files."""

import importlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from hybrid.models.coordinates import Frame
from hybrid.models.engine import EngineResult
from hybrid.models.errors import FileFormatError, InvalidArgumentError
from hybrid.models.files import as_path, check_writable, replacing
from hybrid.models.predictive import MixturePredictive
from hybrid.models.prior import AbstractPrior, Prior, double_precision

Array = Any
SAMPLE = ("chain", "draw")
FORMAT = "hybrid fit 1"
FEWEST, LARGEST = 100, 20_000_000  # draws of replicates, and numbers that each group with one per draw and point may hold
REPLICATES = 2000  # draws of y where the engine gives no parameters


def flat_draws(draws: Mapping[str, Array]) -> dict[str, Array]:
    """Draws of shape (chain, draw) as shape (chain * draw,), chain by chain."""
    return {name: np.reshape(value, -1) for name, value in draws.items()}


def _dataset(variables: Mapping[str, Array], dims: tuple[str, ...]) -> xr.Dataset:
    """Variables that share leading dims, with integer coordinates."""
    arrays = {name: (dims, np.asarray(value)) for name, value in variables.items()}
    shape = next((value.shape for _, value in arrays.values()), ())
    return xr.Dataset(arrays, coords={dim: np.arange(size) for dim, size in zip(dims, shape, strict=False)})


def _log_prior(prior: Prior, draws: Mapping[str, Array], backend: str) -> dict[str, Array]:
    if backend == "torch":
        torch = importlib.import_module("torch")
        values = prior.log_prior({k: torch.as_tensor(v, dtype=torch.float64) for k, v in draws.items()})
    else:
        with double_precision():
            values = prior.log_prior(dict(draws))
    return {name: np.asarray(value, dtype=float) for name, value in values.items()}


def _posterior(prior: Prior, draws: Mapping[str, Array], frame: Frame) -> xr.Dataset:
    """The parameters, and after them the law's textbook parameters in the user's units."""
    shape = next(iter(draws.values())).shape
    with np.errstate(all="ignore"):
        derived = prior.derived({k: np.asarray(v, dtype=float) for k, v in draws.items()}, frame)
    variables = {p.name: draws[p.name] for p in prior.parameters}
    variables |= {name: np.broadcast_to(v, shape) for name, v in derived.items() if name not in variables}
    found = _dataset(variables, SAMPLE)
    for p in prior.parameters:
        found[p.name].attrs["meaning"] = p.meaning
    return found


def _sampled(
    prior: AbstractPrior, frame: Frame, result: EngineResult, x: Array, y: Array, seed: int, backend: str
) -> dict[str, xr.Dataset]:
    """The groups that hold draws."""
    dims = (*SAMPLE, "point")
    if isinstance(prior, Prior) and all(p.name in result.draws for p in prior.parameters):
        size = next(iter(result.draws.values())).size
        step = -(-size // max(FEWEST, LARGEST // x.size))
        some = {name: np.asarray(value)[:, ::step] for name, value in result.draws.items()}
        shape = (*next(iter(some.values())).shape, x.size)
        predictive = MixturePredictive(prior, flat_draws(some), frame)
        replicates = _dataset({"y": predictive.replicate(x, seed).reshape(shape)}, dims)
        groups = {
            "posterior": _posterior(prior, result.draws, frame),
            "posterior_predictive": replicates.assign_coords(draw=step * replicates["draw"].to_numpy()),
            "log_prior": _dataset(_log_prior(prior, result.draws, backend), SAMPLE),
        }
        if step == 1:
            groups["log_likelihood"] = _dataset({"y": predictive.log_density_by_draw(x, y).reshape(shape)}, dims)
        return groups
    drawn = result.predictive.replicate(x, min(REPLICATES, max(FEWEST, LARGEST // x.size)), seed)[None]
    groups = {"posterior_predictive": _dataset({"y": drawn}, dims)}
    groups["posterior_predictive"].attrs["meaning"] = _EACH_ALONE
    if not result.draws:
        return groups
    classes = _dataset(result.draws, SAMPLE)
    for name, meaning in {**prior.class_meanings, **{p.name: p.meaning for p in prior.parameters}}.items():
        if name in classes:
            classes[name].attrs["meaning"] = meaning
    return {**groups, "posterior": classes}


def build_datatree(
    prior: AbstractPrior,
    frame: Frame,
    result: EngineResult,
    points: Mapping[str, Array],
    targets: Mapping[str, Array],
    seed: int,
    attrs: Mapping[str, Any],
    backend: str = "jax",
) -> xr.DataTree:
    """The groups of ArviZ's schema for one fit.

    Parameters
    ----------
    prior, frame
        The prior, and the frame between its coordinates and the user's units.
    result
        Draws of shape (chain, draw) and what the engine says about them.
    points
        The context in the user's units: "x" and "y", shape (n,).
    targets
        Held-out points, "x_target" and "y_target", shape (m,); may be empty.
    seed
        Seed of the posterior predictive draws.
    attrs
        What the root's attributes say beyond prior, fingerprint, status, reasons and info; None values are left out.
    backend
        "jax" or "torch": the library that evaluates the prior's density.

    Returns
    -------
    xarray.DataTree
        `posterior` (chain, draw): the parameters, in coordinates, and the law's textbook parameters in the user's units.
        `sample_stats` (chain, draw), where the engine gives any. `posterior_predictive` and `log_likelihood`: y (chain, draw,
        point), the latter in nats in the user's units; of a curve with so many points that they would fill the memory
        replicates are of evenly spaced draws, and there is no log likelihood. By a network without draws of all parameters
        replicates are of each point alone. `log_prior` (chain, draw), by parameter.
        `observed_data`: y (point). `constant_data`: x (point), the frame, and the held-out points (target). Lists and mappings
        in the attributes are JSON.
    """
    x, y = points["x"], points["y"]
    groups = {
        **_sampled(prior, frame, result, x, y, seed, backend),
        "observed_data": _dataset({"y": y}, ("point",)),
        "constant_data": _dataset({"x": x}, ("point",))
        .merge(_dataset(targets, ("target",)))
        .assign({name: float(value) for name, value in frame._asdict().items()}),
    }
    if result.sample_stats:
        groups["sample_stats"] = _dataset(result.sample_stats, SAMPLE)
        for name, meaning in _STATS.items():
            if name in groups["sample_stats"]:
                groups["sample_stats"][name].attrs["meaning"] = meaning
    if "log_likelihood" in groups and isinstance(prior, Prior) and prior.integrable:
        groups["log_likelihood"].attrs["meaning"] = _GIVEN_DRIFT
    tree = xr.DataTree.from_dict({name: groups[name] for name in sorted(groups, key=_ORDER.index)})
    tree.attrs = {
        "format": FORMAT,
        "prior": prior.name,
        "prior_json": prior.to_json(),
        "fingerprint": prior.fingerprint,
        "status": result.status,
        "reasons": json.dumps(list(result.reasons)),
        "info": json.dumps(dict(result.info), default=lambda value: np.asarray(value).tolist()),
        **{name: value for name, value in attrs.items() if value is not None},
    }
    return tree


_STATS = {
    "lp": "log p(parameters, y | x) in the prior's coordinates, nats, of the parameters' unconstrained values; by NUTS without "
    "a drift, which it integrates out",
    "log_ratio": "lp - log_q of as many proposals before they were resampled: not of the draws beside it. k-hat comes from it",
    "energy": "NUTS's Hamiltonian; walks and jumps between its transitions change it too, so that the BFMI of hybrid.health is "
    "of the momentum alone",
}
_GIVEN_DRIFT = (
    "given each draw of the drift, which follows the point itself: for leave-one-out use hybrid.loo, which integrates it out"
)
_EACH_ALONE = (
    "each point from its own forecast, independent of the others and of the draws in posterior: for a check that takes several "
    "points together, and for coherent curves, take fit.sample"
)
_ORDER = (
    "posterior",
    "sample_stats",
    "posterior_predictive",
    "log_likelihood",
    "log_prior",
    "observed_data",
    "constant_data",
)


def write_datatree(tree: xr.DataTree, path: str | os.PathLike[str]) -> None:
    """Write a tree to NetCDF, whole or not at all: under another name first, renamed at the end.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written.
    """
    place = as_path(path, "path")
    if place.exists():
        check_writable(place)  # a rename would take the place of a protected file too
    checksums = {
        group.path: {name: {"fletcher32": True} for name, variable in group.variables.items() if variable.size > 1}
        for group in tree.subtree
    }
    try:
        with replacing(place) as temporary:
            tree.to_netcdf(temporary, engine="h5netcdf", encoding=checksums)
    except InvalidArgumentError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"cannot write {path}: {error}") from None


def read_datatree(path: str | os.PathLike[str], form: str = FORMAT) -> xr.DataTree:
    """Read a tree of the given format that `write_datatree` wrote, into memory.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, or of another format.
    """
    remedy = f"save a {form.split()[1]} again with {form.split()[1]}.save(...)"
    try:
        content = io.BytesIO(Path(path).read_bytes())  # in memory, a file that turns out damaged is not left open
    except FileNotFoundError:
        raise FileFormatError(f"there is no file {path}: check the path") from None
    except (OSError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from None
    try:
        with h5py.File(content) as file:  # before h5netcdf, whose half-opened files complain on stderr
            file.visititems(lambda _, item: dict(item.attrs))
            is_fit = file.attrs.get("format") == form
        with xr.open_datatree(content, engine="h5netcdf") as opened:
            tree = opened.load()
    except Exception as error:  # what a damaged HDF5 file raises is open-ended
        raise FileFormatError(f"{path} is damaged or not NetCDF ({error}): {remedy}") from None
    if not is_fit:
        raise FileFormatError(f"{path} is not a {form.split()[1]} of this version of Hybrid: {remedy}")
    return tree
