"""Settings: what is declared is what is stored, and nothing else gets in."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hybrid.amortized.design import Design
from hybrid.amortized.settings import DESIGNS, PRECISIONS, PRESETS, Settings, design_for, preset_settings
from hybrid.models.errors import FileFormatError, HybridError, InvalidArgumentError, UnknownNameError
from hybrid.models.prior import Prior
from hybrid.models.registry import get_prior, prior_names

COUNTS = ("layers", "width", "heads", "inner", "bins", "summaries", "transforms", "hidden", "steps", "batch", "shards")


@st.composite
def valid(draw: st.DrawFn) -> Settings:
    counts = st.integers(1, 10**6)
    heads, shards = draw(st.integers(1, 64)), draw(st.integers(1, 64))
    share, size = st.floats(0.0, 1.0, exclude_max=True), st.floats(0.0, 1e6)
    positive = st.floats(0.0, 1e6, exclude_min=True)
    values: dict[str, Any] = {name: draw(counts) for name in COUNTS}
    values |= {"heads": heads, "width": heads * draw(counts), "shards": shards, "batch": shards * draw(counts)}
    values |= {name: draw(positive) for name in ("learning_rate", "clip")}
    values |= {name: draw(share) for name in ("warmup", "average")}
    values["decay"] = draw(share) * (1.0 - values["warmup"])
    values |= {name: draw(size) for name in ("weight_decay", "context_weight", "parameter_weight")}
    values["futures"] = draw(st.integers(0, 10**6))
    return Settings(**values, precision=draw(st.sampled_from(PRECISIONS)), seed=draw(st.integers(0, 2**32 - 1)))


@hypothesis_settings(deadline=None)
@given(valid())
def test_json_round_trip(settings: Settings) -> None:
    again = Settings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert again == settings
    assert hash(again) == hash(settings)
    assert set(settings.to_dict()) == {f.name for f in dataclasses.fields(Settings)}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -4, 2.0, True, "4", None])
def test_counts_are_positive_integers(name: str, value: object) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{name} must be an integer of at least 1"):
        Settings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"width": 130}, r"width \(130\) must be a multiple of heads \(4\)"),
        ({"heads": 3}, "multiple of heads"),
        ({"learning_rate": 10**400}, "learning_rate must be a finite number"),
        ({"batch": 129}, r"batch \(129\) must be a multiple of shards \(2\)"),
        ({"shards": 3}, "multiple of shards"),
        ({"learning_rate": 0.0}, "learning_rate and clip must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"clip": -1.0}, "learning_rate and clip must be above 0"),
        ({"clip": math.nan}, "clip"),
        ({"warmup": 1.0}, "warmup must be at least 0 and below 1, got 1.0"),
        ({"warmup": -0.1}, "warmup"),
        ({"warmup": math.nan}, "warmup"),
        ({"decay": 1.0}, "decay must be at least 0 and below 1"),
        ({"decay": -0.1}, "decay"),
        ({"warmup": 0.5, "decay": 0.6}, r"warmup \+ decay must not exceed 1, got 0.5 \+ 0.6"),
        ({"average": 1.0}, "average must be at least 0 and below 1"),
        ({"average": -1e-9}, "average"),
        ({"weight_decay": -0.01}, "weight_decay must be at least 0, got -0.01"),
        ({"context_weight": -1.0}, "context_weight"),
        ({"futures": -1}, "futures must be an integer of at least 0, got -1"),
        ({"futures": 2.0}, "futures"),
        ({"futures": True}, "futures"),
        ({"parameter_weight": math.nan}, "parameter_weight"),
        (
            {"precision": "16-mixed"},
            "precision must be one of .*, got '16-mixed'",
        ),
    ],
)
def test_unusable_settings_are_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        Settings(**change)
    with pytest.raises(FileFormatError, match=match):  # stored, they make the file a bad one
        Settings.from_dict({**Settings().to_dict(), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"warmup": 0.0, "decay": 0.0, "average": 0.0},
        {"warmup": 0.5, "decay": 0.5},
        {"weight_decay": 0.0, "context_weight": 0.0, "parameter_weight": 0.0},
        {"width": 1, "heads": 1, "batch": 1, "shards": 1, "bins": 1, "layers": 1, "steps": 1},
    ],
)
def test_bounds_that_are_allowed(change: dict[str, Any]) -> None:
    assert dataclasses.replace(Settings(), **change).to_dict() == {**Settings().to_dict(), **change}


def test_foreign_descriptions_are_refused() -> None:
    description = Settings().to_dict()
    with pytest.raises(FileFormatError, match=r"another version of Hybrid \(see depth\)"):
        Settings.from_dict({**description, "depth": 3})
    less = {name: value for name, value in description.items() if name not in ("bins", "average")}
    with pytest.raises(FileFormatError, match=r"another version of Hybrid \(see average, bins\)"):
        Settings.from_dict(less)
    with pytest.raises(FileFormatError, match="another version"):
        Settings.from_dict({})
    for name in ("learning_rate", "warmup", "weight_decay"):
        with pytest.raises(FileFormatError, match="not a description of settings"):
            Settings.from_dict({**description, name: "high"})
        with pytest.raises(FileFormatError, match="not a description of settings"):
            Settings.from_dict({**description, name: None})


def test_presets() -> None:
    assert list(PRESETS) == ["small", "paper"]
    assert preset_settings("small") == Settings()
    paper = preset_settings("paper")
    assert (paper.layers, paper.width, paper.heads, paper.inner, paper.bins) == (12, 512, 4, 1024, 1000)
    assert paper.steps > preset_settings("small").steps
    with pytest.raises(UnknownNameError, match="no preset called 'large'; there are small, paper") as error:
        preset_settings("large")
    assert isinstance(error.value, HybridError)


def test_designs_of_the_shipped_priors() -> None:
    assert set(DESIGNS) <= set(prior_names())
    for name in prior_names():
        if name not in DESIGNS:
            assert design_for(get_prior(name)) == Design(before=0.0 if get_prior(name).coordinates == "unit" else 0.1)
    released = design_for(get_prior("nslpfn"))
    assert dict(released.spacing).keys() == {"linear", "irregular"}
    assert released.decades[1] == 2.0  # its coordinates run from .01 to 1
    assert released.horizon[1] == 10.0
    shipped = get_prior("m2")
    for coordinates, design in (("ratio", Design(before=0.1)), ("unit", Design())):  # these have no x before the first point
        own = Prior("own", shipped.law, shipped.parameters, coordinates=coordinates)  # type: ignore[attr-defined]
        assert design_for(own) == design


def test_a_name_changes_no_design() -> None:
    for name in ("nsl", "lcpfn", "nslpfn", "bnsl"):
        prior = get_prior(name)
        assert design_for(prior.replace(name="mine")) == design_for(prior)
    shipped = get_prior("nsl")
    unit = Prior("nsl", shipped.law, shipped.parameters, shipped.noise.name, "unit")  # type: ignore[attr-defined]
    assert design_for(unit) == Design()  # there is nothing before its first point


def test_numbers_of_numpy_are_numbers() -> None:
    found = Settings(steps=np.int64(5), seed=np.uint8(3), futures=np.int32(0), learning_rate=np.float32(0.5))  # type: ignore[arg-type]
    assert found == Settings(steps=5, seed=3, futures=0, learning_rate=0.5)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    with pytest.raises(InvalidArgumentError, match="steps must be an integer"):
        Settings(steps=np.bool_(True))  # type: ignore[arg-type]
