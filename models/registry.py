"""The shipped priors and laws by name, and where a user's own are added."""

import json
from collections.abc import Mapping
from typing import Any

from hybrid.models import bnsl, drift, lcpfn, m1, m2, m3, m4, nsl, nsl_paper, nslpfn
from hybrid.models.distributions import Distribution
from hybrid.models.errors import FileFormatError, UnknownNameError
from hybrid.models.law import Law
from hybrid.models.prior import AbstractPrior, Prior

PRIORS: tuple[AbstractPrior, ...] = (
    m1.PRIOR,
    m2.PRIOR,
    m3.PRIOR,
    m4.PRIOR,
    bnsl.PRIOR,
    bnsl.PRIOR_2,
    bnsl.PRIOR_3,
    *drift.PRIORS,
    nsl.PRIOR,
    nsl_paper.PRIOR,
    nslpfn.PRIOR,
    lcpfn.PRIOR,
)


def prior_names() -> tuple[str, ...]:
    """Names of the shipped priors."""
    return tuple(p.name for p in PRIORS)


def law_names() -> frozenset[str]:
    """Names of the laws of the shipped priors."""
    return frozenset(p.law.name for p in PRIORS if isinstance(p, Prior)) | {nslpfn.LAW}


def get_prior(name: str | AbstractPrior) -> AbstractPrior:
    """The shipped prior of that name; a prior object is returned as it is.

    Raises
    ------
    UnknownNameError
        If no prior has that name; the message lists those that exist.
    """
    if isinstance(name, AbstractPrior):
        return name
    for prior in PRIORS:
        if prior.name == name:
            return prior
    raise UnknownNameError(f"no prior called {name!r}; there are {', '.join(prior_names())}")


def prior_from_dict(description: Mapping[str, Any], law: Law | None = None) -> AbstractPrior:
    """Rebuild a prior from its specification; `law` is needed only where the law is not a shipped one.

    Raises
    ------
    FileFormatError
        If the description is not one of a prior, or its law is unknown here.
    """
    if not isinstance(description, Mapping) or "law" not in description:
        raise FileFormatError("not a description of a prior: it names no law")
    if description["law"] == nslpfn.LAW:
        try:
            found = nslpfn.NslPfn().replace(str(description["name"]), sigma=Distribution.from_dict(description["sigma"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"not a complete description of a prior: {error!r}") from None
        if dict(description) != found.to_dict():
            raise FileFormatError(f"not a description of prior 'nslpfn' of this version, which is {found.to_json()}")
        return found
    if law is None:
        known = {p.law.name: p.law for p in PRIORS if isinstance(p, Prior)}
        if not isinstance(description["law"], str) or description["law"] not in known:
            raise FileFormatError(f"law {description['law']!r} is not a shipped one: in Python pass it as law=...")
        law = known[description["law"]]
    return Prior.from_dict(description, law)


def prior_from_json(text: str, law: Law | None = None) -> AbstractPrior:
    """Rebuild a prior from what `to_json` wrote.

    Parameters
    ----------
    text
        JSON.
    law
        The law, where it is your own and not one that ships.

    Raises
    ------
    FileFormatError
        If the text is not JSON, or not of a prior, or its law is unknown here.
    """
    try:
        description = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise FileFormatError(f"not JSON: {error}") from None
    return prior_from_dict(description, law)
