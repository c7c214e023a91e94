"""What gets imported when: the front door is light, and no path imports the other engine's library."""

import subprocess
import sys

import pytest

HEAVY = ("jax", "numpyro", "torch", "arviz_base", "arviz_stats", "arviz_plots", "matplotlib", "pandas", "xarray", "scipy")
PREDICT = """
import numpy as np
from hybrid.models.engine import EngineResult
from hybrid.result import Fit
draws = {"y_first": np.ones((1, 1)), "y_ratio": np.full((1, 1), 0.5), "sigma": np.full((1, 1), 0.1)}
fit = Fit(hybrid.load_example("porian_optimal_loss"), hybrid.get_prior("m1"), "{engine}", 1e21, 5.0, 0, EngineResult(draws))
fit.predict(1e20), fit.sample(1e20), fit.log_density(1e20, 3.0), fit.prob_below(1e20, 3.0)
"""


def imported(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running the code."""
    command = [
        sys.executable,
        "-c",
        f"import hybrid\n{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})",
    ]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_import_hybrid_is_light() -> None:
    assert not imported("dir(hybrid), hybrid.__version__") & set(HEAVY)


def test_curves_need_numpy_alone() -> None:
    assert not imported("hybrid.load_example('porian_optimal_loss')") & set(HEAVY)


def test_predictions_import_no_engine_and_no_plots() -> None:
    found = imported(PREDICT.replace("{engine}", "nuts"))
    assert not found & {"jax", "numpyro", "torch", "arviz_base", "arviz_stats", "arviz_plots", "matplotlib"}


AMORTIZED = """
fit = hybrid.fit(hybrid.load_example("porian_optimal_loss"), "m4", "pfn", y_scale=5.0)
fit.predict(1e21), fit.sample(1e21, 3), fit.log_density(1e21, 3.0), fit.prob_below(1e21, 3.0), fit.verdict
"""


@pytest.mark.parametrize(("code", "wanted", "unwanted"), [(PREDICT, "jax", "torch"), (AMORTIZED, "torch", "jax")])
def test_data_imports_one_backend(code: str, wanted: str, unwanted: str) -> None:
    found = imported(code.replace("{engine}", "nuts") + "fit.data")
    assert wanted in found
    assert not found & {unwanted, "arviz_base", "arviz_stats", "matplotlib"}


def test_the_amortized_path_needs_neither_jax_nor_plots_nor_what_training_needs() -> None:
    unwanted = {"jax", "numpyro", "arviz_base", "arviz_stats", "arviz_plots", "matplotlib", "sklearn", "lightning_fabric"}
    assert not imported(AMORTIZED) & unwanted


def test_the_command_with_the_amortized_engine_imports_no_jax() -> None:
    run = "from hybrid.cli import main\nmain(['fit', 'example:porian_optimal_loss', '--engine', 'pfn'], standalone_mode=False)"
    found = imported(run)
    assert "torch" in found
    assert not found & {"jax", "numpyro", "matplotlib", "arviz_stats"}


def test_every_public_name_exists() -> None:
    code = "import hybrid.published, hybrid.fitting\nassert all(callable(getattr(hybrid, name)) for name in hybrid.__all__)"
    assert "hybrid" in imported(code)
