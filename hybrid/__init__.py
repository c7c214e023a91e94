"""Hybrid: probabilistic forecasts of neural scaling curves."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid.amortized.design import Design
    from hybrid.amortized.release import train_prior as train
    from hybrid.benchmarking import Benchmark, benchmark
    from hybrid.calibrating import Calibration, calibrate, load_calibration
    from hybrid.checking import health, loo, plot_checks, sensitivity
    from hybrid.choosing import next_points
    from hybrid.comparing import Agreement, agreement
    from hybrid.curve import Curve
    from hybrid.fitting import fit, fit_many, priors
    from hybrid.loading import load_fit
    from hybrid.models.distributions import Distribution
    from hybrid.models.errors import (
        EngineUnavailableError,
        FileFormatError,
        HybridError,
        InvalidArgumentError,
        InvalidCurveError,
        ReportError,
        TrainingError,
        UnknownNameError,
    )
    from hybrid.models.law import Law
    from hybrid.models.prior import Parameter, Prior
    from hybrid.models.registry import get_prior, prior_from_json
    from hybrid.published import examples, load_example
    from hybrid.reading import read_csv, read_curves
    from hybrid.reporting import write_report
    from hybrid.result import Fit

    __version__: str

__all__ = [
    "Agreement",
    "Benchmark",
    "Calibration",
    "Curve",
    "Design",
    "Distribution",
    "EngineUnavailableError",
    "FileFormatError",
    "Fit",
    "HybridError",
    "InvalidArgumentError",
    "InvalidCurveError",
    "Law",
    "Parameter",
    "Prior",
    "ReportError",
    "TrainingError",
    "UnknownNameError",
    "agreement",
    "benchmark",
    "calibrate",
    "examples",
    "fit",
    "fit_many",
    "get_prior",
    "health",
    "load_calibration",
    "load_example",
    "load_fit",
    "loo",
    "next_points",
    "plot_checks",
    "prior_from_json",
    "priors",
    "read_csv",
    "read_curves",
    "sensitivity",
    "train",
    "write_report",
]

# Names are imported when first used, so that `import hybrid` and the command line start at once.
_HOMES = {
    "hybrid.amortized.design": ("Design",),
    "hybrid.amortized.release": ("train",),
    "hybrid.benchmarking": ("Benchmark", "benchmark"),
    "hybrid.calibrating": ("Calibration", "calibrate", "load_calibration"),
    "hybrid.checking": ("health", "loo", "plot_checks", "sensitivity"),
    "hybrid.choosing": ("next_points",),
    "hybrid.comparing": ("Agreement", "agreement"),
    "hybrid.curve": ("Curve",),
    "hybrid.fitting": ("fit", "fit_many", "priors"),
    "hybrid.loading": ("load_fit",),
    "hybrid.models.distributions": ("Distribution",),
    "hybrid.models.errors": (
        "EngineUnavailableError",
        "FileFormatError",
        "HybridError",
        "InvalidArgumentError",
        "InvalidCurveError",
        "ReportError",
        "TrainingError",
        "UnknownNameError",
    ),
    "hybrid.models.law": ("Law",),
    "hybrid.models.prior": ("Parameter", "Prior"),
    "hybrid.models.registry": ("get_prior", "prior_from_json"),
    "hybrid.published": ("examples", "load_example"),
    "hybrid.reading": ("read_csv", "read_curves"),
    "hybrid.reporting": ("write_report",),
    "hybrid.result": ("Fit",),
}
_NAMES_THERE = {"train": "train_prior"}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # to a type checker a misspelt name is an error

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return importlib.import_module("importlib.metadata").version("hybrid-scaling-laws")
        if name not in _HOME:
            raise AttributeError(f"module 'hybrid' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), _NAMES_THERE.get(name, name))
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
