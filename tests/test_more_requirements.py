"""Frames of several curves and of masked points, and paths where no file can be: what is computed is what was asked for."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density

from hybrid.models.errors import InvalidArgumentError
from hybrid.models.files import check_writable
from hybrid.models.numpyro_model import numpyro_model
from hybrid.models.prior import double_precision
from hybrid.models.registry import get_prior

X = np.array([0.002, 0.01, 0.1, 1.0])
Y = np.array([1.4, 1.2, 0.9, 0.5])


def typical(rows: int) -> dict[str, np.ndarray]:
    return {p.name: p.distribution.spread_out(np.linspace(0.3, 0.6, rows)) for p in get_prior("m4").parameters}


def test_each_curve_of_a_batch_has_its_own_frame() -> None:
    prior, theta = get_prior("m4"), typical(2)
    x = np.stack([X, [0.05, 0.2, 0.5, 1.0]])
    together = np.asarray(prior.log_density(theta, x, np.stack([Y, Y])))
    for i in range(2):
        alone = prior.log_density({name: value[i : i + 1] for name, value in theta.items()}, x[i], Y)
        assert together[i] == pytest.approx(float(alone[0]), rel=1e-12)
    with pytest.raises(InvalidArgumentError, match="must be > 0"):
        prior.log_density(theta, x - 0.01, np.stack([Y, Y]))


def test_what_a_mask_leaves_out_changes_nothing() -> None:
    model, theta = numpyro_model(get_prior("m4")), {name: value[0] for name, value in typical(1).items()}
    with double_precision():
        plain = float(log_density(model, (jnp.asarray(X), jnp.asarray(Y)), {}, theta)[0])
        x, y = jnp.asarray([1e-5, *X, 30.0]), jnp.asarray([1.0, *Y, 0.4])
        mask = jnp.asarray([False, *[True] * len(X), False])
        assert float(log_density(model, (x, y), {"mask": mask}, theta)[0]) == pytest.approx(plain, rel=1e-12)
        assert float(log_density(model, (x, y), {}, theta)[0]) != pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("name", ["a" * 300 + ".nc", "a\0b.nc"])
def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot write"):
        check_writable(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_looked_into_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o000)
    with pytest.raises(InvalidArgumentError, match="cannot write"):
        check_writable(folder / "x.nc")
