"""Fits from the files that `Fit.save` wrote."""

import json
import os
from collections.abc import Mapping
from typing import Any

from hybrid.curve import Curve
from hybrid.diagnostics.datatree import read_datatree
from hybrid.models.checks import as_integer, as_positive
from hybrid.models.engine import EngineResult
from hybrid.models.errors import FileFormatError, HybridError
from hybrid.models.identity import is_same_law
from hybrid.models.law import Law
from hybrid.models.registry import prior_from_json
from hybrid.result import Fit


def _check_attributes(attrs: Mapping[Any, Any]) -> None:
    """What a file says of its fit must be what a fit can be."""
    for name in ("horizon", "y_scale"):
        as_positive(float(attrs[name]), name)
    as_integer(int(attrs["seed"]), "seed", 0, 2**32 - 1)
    for name, allowed in (("engine", ("nuts", "pfn", "least_squares")), ("status", ("ok", "needs_review"))):
        if attrs[name] not in allowed:
            raise FileFormatError(f"its {name} is {attrs[name]!r}, which is none of {', '.join(allowed)}")
    if not isinstance(json.loads(attrs["info"]), dict):
        raise FileFormatError("its info is not a mapping")


def load_fit(path: str | os.PathLike[str], law: Law | None = None) -> Fit:
    """Read a fit that `Fit.save` wrote; it equals the fit that was saved.

    Its forecasts do, too, but for those by a network of one of many curves, which differ in the sixth digit; see `fit_many`.

    Parameters
    ----------
    path
        The NetCDF file.
    law
        The law, where it is the user's own and not one that ships.

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, not one of a fit, or its prior cannot be rebuilt here.
    """
    tree = read_datatree(path)
    try:
        attrs, constant = tree.attrs, tree["constant_data"]
        _check_attributes(attrs)
        prior = prior_from_json(attrs["prior_json"], law)
        if prior.fingerprint != attrs["fingerprint"]:
            raise FileFormatError(f"{path} was fitted under another prior than the one it describes: fit again")
        if not is_same_law(prior, json.loads(attrs.get("law_values", "null"))):
            raise FileFormatError(f"{path} was fitted with a law that computes something else: give that one")
        held_out = {k: constant[k].to_numpy() for k in ("x_target", "y_target") if k in constant}
        curve = Curve(
            constant["x"].to_numpy(),
            tree["observed_data"]["y"].to_numpy(),
            attrs["x_label"],
            attrs["y_label"],
            name=attrs.get("name"),
            **held_out,
        )
        posterior: Any = tree["posterior"] if "posterior" in tree.children else {}
        names = [p.name for p in prior.parameters if p.name in posterior]
        if len(names) < len(prior.parameters):
            if attrs["engine"] != "pfn" or "log_likelihood" in tree.children:
                missing = next(p.name for p in prior.parameters if p.name not in names)
                raise FileFormatError(f"{path} lacks the draws of {missing}: save it again with fit.save(...)")
            names = [str(name) for name in getattr(posterior, "data_vars", ())]  # classes of a mixture
        draws = {name: posterior[name].to_numpy() for name in names}
        stats = tree.children.get("sample_stats")
        result = EngineResult(
            draws,
            {} if stats is None else {str(k): v.to_numpy() for k, v in stats.data_vars.items()},
            attrs["status"],
            tuple(json.loads(attrs["reasons"])),
            json.loads(attrs["info"]),
        )
        scales = float(attrs["horizon"]), float(attrs["y_scale"])
        fit = Fit(curve, prior, attrs["engine"], *scales, int(attrs["seed"]), result, json.loads(attrs["versions"]))
    except FileFormatError:
        raise
    except (HybridError, KeyError, ValueError, TypeError) as error:
        raise FileFormatError(f"{path} is not a complete fit ({error}): save it again with fit.save(...)") from None
    vars(fit)["data"] = tree
    return fit
