"""What a program has set for all of torch or all of JAX changes no result, and is as it was afterwards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

import hybrid
from hybrid.amortized import checkpoint
from hybrid.amortized.settings import Settings, design_for
from hybrid.amortized.training import train
from hybrid.models.registry import get_prior

X = np.geomspace(1.0, 100.0, 9)
CURVE = hybrid.Curve(X, (0.3 + 0.6 * X**-0.4) * np.exp(0.01 * np.cos(np.arange(9) * 2.0)))
AT = np.array([5.0, 300.0, 900.0])
SIZES: dict[str, Any] = {"layers": 1, "width": 32, "inner": 32, "hidden": 16, "transforms": 1, "bins": 20, "batch": 16}


@pytest.fixture
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    after = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    checkpoint._load.cache_clear()
    assert after == torch.float64


def of_fit(prior: str, engine: str, **options: Any) -> list[np.ndarray]:
    checkpoint._load.cache_clear()  # a network that is made now
    fit = hybrid.fit(CURVE, prior, engine, horizon=AT[-1], **options)
    posterior = fit.data["posterior"].to_dataset()
    return [fit.predict(AT)["quantiles"].to_numpy(), fit.sample(AT, 20).to_numpy(), *(v.to_numpy() for v in posterior.values())]


def of_training(folder: Path) -> list[np.ndarray]:
    prior = get_prior("m1")
    settings = Settings(**SIZES, steps=3, precision="32-true")
    model = train(prior, settings, design_for(prior), folder / "run.training", "cpu", progress=False).model
    folder.joinpath("run.training").unlink()
    return [value.numpy() for value in model.state_dict().values()]


@pytest.mark.parametrize("prior", ["m4", "nsl"])
def test_networks_forecast_alike_whatever_precision_is_the_default(prior: str, request: pytest.FixtureRequest) -> None:
    known = of_fit(prior, "pfn")
    request.getfixturevalue("double_precision")
    for one, other in zip(of_fit(prior, "pfn"), known, strict=True):
        np.testing.assert_array_equal(one, other)


def test_networks_learn_alike_whatever_precision_is_the_default(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    known = of_training(tmp_path)
    request.getfixturevalue("double_precision")
    for one, other in zip(of_training(tmp_path), known, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_exact_draws_are_alike_whatever_precision_jax_has() -> None:
    options = {"draws": 100, "warmup": 100}
    known, before = of_fit("m1", "nuts", **options), jax.config.jax_enable_x64
    try:
        for wide in (False, True):
            jax.config.update("jax_enable_x64", wide)
            for one, other in zip(of_fit("m1", "nuts", **options), known, strict=True):
                np.testing.assert_array_equal(one, other)
            assert jax.config.jax_enable_x64 is wide
    finally:
        jax.config.update("jax_enable_x64", before)
