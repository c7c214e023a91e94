"""What a network and its training are, as data."""

import dataclasses
import numbers
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from hybrid.amortized.design import Design
from hybrid.amortized.law_frame import SEARCHES
from hybrid.models.checks import is_real
from hybrid.models.errors import FileFormatError, InvalidArgumentError, UnknownNameError
from hybrid.models.prior import AbstractPrior

PRECISIONS = ("auto", "32-true", "bf16-mixed")


def _is_whole(value: Any) -> bool:
    """Whether a value is an integer, by Python or NumPy; True and False are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A network and the run that trains it. Equal settings and an equal prior give an equal network.

    Parameters
    ----------
    layers, width, heads, inner
        Of the transformer; the width is a multiple of the heads.
    bins
        Of the bar distribution.
    summaries
        Tokens that gather the context for the parameter head.
    transforms, hidden
        Of the flow over the parameters.
    steps
        Steps of the optimiser.
    batch
        Curves per step, over all devices.
    shards
        Parts that a step's curves are drawn and sent through the network in, shared out evenly among the devices.
    learning_rate
        Peak of Muon's; AdamW's is a third.
    warmup, decay
        Shares of the steps over which the rate rises at the beginning, and falls to 0 along a cosine at the end. It is
        constant between the two, so that an unfinished run can still be made longer or shorter.
    weight_decay, clip
        Of both optimisers; largest norm of the gradient.
    average
        Decay per step of the running mean of the weights that is kept as the result; 0 keeps the last weights.
    context_weight
        Weight of the context-regression loss (Lee et al. 2025): the loss of as many observed points as there are targets.
    parameter_weight
        Weight of the parameter head's loss.
    futures
        Proposals of the parameter head per curve, whose targets are learnt from beside the curve's own, by their weights; see
        `hybrid.amortized.futures`. 0 for the curve's own targets only. For priors with a parameter flow, once it is trained.
    precision
        "bf16-mixed", "32-true", or "auto": half precision where the device is quick at it.
    search
        How thoroughly the prior's law is fitted to a context: "quick"; "thorough" where several modes are likely; or "fine",
        thorough and in the end to 128 groups of points in place of 32, where breaks may be narrower than a group.
    seed
        Of the initial weights and of all curves.

    Raises
    ------
    InvalidArgumentError
        If a value is outside what it may be.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    inner: int = 512
    bins: int = 100
    summaries: int = 4
    transforms: int = 5
    hidden: int = 96
    steps: int = 6000
    batch: int = 128
    shards: int = 2
    learning_rate: float = 2.5e-3
    warmup: float = 0.02
    decay: float = 0.4
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.0
    context_weight: float = 0.0
    parameter_weight: float = 0.5
    futures: int = 0
    precision: str = "auto"
    search: str = "quick"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "layers",
            "width",
            "heads",
            "inner",
            "bins",
            "summaries",
            "transforms",
            "hidden",
            "steps",
            "batch",
            "shards",
        ):
            if not _is_whole(value := getattr(self, name)) or value < 1:
                raise InvalidArgumentError(f"{name} must be an integer of at least 1, got {value!r}")
            object.__setattr__(self, name, int(value))
        if not _is_whole(self.futures) or self.futures < 0:
            raise InvalidArgumentError(f"futures must be an integer of at least 0, got {self.futures!r}")
        object.__setattr__(self, "futures", int(self.futures))
        if self.width % self.heads:
            raise InvalidArgumentError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        if self.batch % self.shards:
            raise InvalidArgumentError(f"batch ({self.batch}) must be a multiple of shards ({self.shards})")
        if not _is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise InvalidArgumentError(f"seed must be an integer from 0 to 2^32 - 1, got {self.seed!r}")
        object.__setattr__(self, "seed", int(self.seed))
        for name in (
            "learning_rate",
            "warmup",
            "decay",
            "weight_decay",
            "clip",
            "average",
            "context_weight",
            "parameter_weight",
        ):
            value = getattr(self, name)
            if is_real(value) and not isinstance(value, (int, float)):
                value = float(value)  # a number of NumPy's, which JSON does not know
                object.__setattr__(self, name, value)
            if not is_real(value) or not abs(value) <= sys.float_info.max:
                raise InvalidArgumentError(f"{name} must be a finite number, got {value!r}")
        if not (self.learning_rate > 0 and self.clip > 0):
            raise InvalidArgumentError("learning_rate and clip must be above 0")
        for name in ("warmup", "decay", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name} must be at least 0 and below 1, got {getattr(self, name)!r}")
        if self.warmup + self.decay > 1:
            raise InvalidArgumentError(f"warmup + decay must not exceed 1, got {self.warmup} + {self.decay}")
        for name in ("weight_decay", "context_weight", "parameter_weight"):
            if not getattr(self, name) >= 0:
                raise InvalidArgumentError(f"{name} must be at least 0, got {getattr(self, name)!r}")
        if self.precision not in PRECISIONS:
            raise InvalidArgumentError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.search not in SEARCHES:
            raise InvalidArgumentError(f"search must be one of {', '.join(SEARCHES)}, got {self.search!r}")

    def to_dict(self) -> dict[str, Any]:
        """All settings, JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "Settings":
        """Rebuild settings from `to_dict`.

        Raises
        ------
        FileFormatError
            If a setting is missing, unknown or out of range.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(description, Mapping):
            raise FileFormatError(f"not a description of settings: {description!r}")
        if set(description) != names:
            wrong = sorted(names ^ set(description))
            raise FileFormatError(f"these settings were written by another version of Hybrid (see {', '.join(wrong)})")
        try:
            return cls(**description)
        except (InvalidArgumentError, TypeError) as error:
            raise FileFormatError(f"not a description of settings: {error}") from None


PRESETS: Mapping[str, Settings] = {
    "small": Settings(),
    "paper": Settings(
        layers=12,
        width=512,
        heads=4,
        inner=1024,
        bins=1000,
        steps=100_000,
        learning_rate=2e-4,
        warmup=0.1,
        decay=0.6,
        hidden=256,
    ),
}

# The published priors know their own range only: up to 2 decades in x, horizons up to ten times the last context x.
_PUBLISHED = Design(
    spacing=(("linear", 0.5), ("irregular", 0.5)), decades=(0.3, 2.0), horizon=(1.1, 10.0), repeated=0.0, interpolated=0.2
)
# Real curves are often narrower than a decade, and many show the best result so far.
DESIGNS: Mapping[str, Design] = {
    "nsl": Design(decades=(0.3, 6.0), horizon=(1.2, 300.0), best_so_far=0.2, before=0.1),
    "nslpfn": _PUBLISHED,
    "lcpfn": _PUBLISHED,
}


def check_names(names: Iterable[str]) -> None:
    """Refuse what is not the name of a setting.

    Raises
    ------
    InvalidArgumentError
        If a name is not one.
    """
    known = {field.name for field in dataclasses.fields(Settings)}
    for name in names:
        if name not in known:
            raise InvalidArgumentError(f"there is no setting {name!r}; there are {', '.join(sorted(known))}")


def preset_settings(name: str) -> Settings:
    """The settings called "small" or "paper".

    Raises
    ------
    UnknownNameError
        If there are none of that name.
    """
    if name not in PRESETS:
        raise UnknownNameError(f"no preset called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def design_for(prior: AbstractPrior) -> Design:
    """The design that a prior's network is trained on unless another is given: that of its law, whatever the prior's name."""
    usual = Design(before=0.1) if prior.coordinates == "ratio" else Design()
    own = DESIGNS.get(prior.to_dict()["law"], usual)
    return own if prior.coordinates == "ratio" or not own.before else usual
