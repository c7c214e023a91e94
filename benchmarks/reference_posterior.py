"""Make the stored reference posteriors: 10 long chains of plain NumPyro NUTS, thinned, on one fixed data set per prior.

    python benchmarks/reference_posterior.py --out tests/reference

Nothing of Hybrid's own sampler is used: the model goes to `numpyro.infer.MCMC`. Refuses to write unless rank-normalised
R-hat < 1.01 for every parameter.
"""

import argparse
import json
import pathlib

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS

from hybrid.models import convergence
from hybrid.models.coordinates import get_coordinates
from hybrid.models.files import replacing
from hybrid.models.numpyro_model import numpyro_model
from hybrid.models.prior import Prior, double_precision
from hybrid.models.registry import get_prior
from hybrid.models.thresholds import MAX_RHAT

CHAINS, WARMUP, DRAWS, THIN, POINTS = 10, 2000, 20_000, 10, 40
SEEDS = {"m4": 3, "bnsl": 8}


def reference(name: str) -> dict[str, object]:
    """Means, sds and Monte Carlo errors of the parameters, with the data they belong to."""
    prior = get_prior(name)
    if not isinstance(prior, Prior):
        raise TypeError(f"{name} has no density")
    x = np.geomspace(1e-3, 1.0, POINTS)
    y = prior.sample(SEEDS[name] + 1, x, seed=SEEDS[name])["y"].values[-1]
    frame = get_coordinates(prior.coordinates).frame(x, 10.0, 1.0)
    with double_precision():
        kernel = NUTS(numpyro_model(prior), dense_mass=True, target_accept_prob=0.95)
        mcmc = MCMC(
            kernel,
            num_warmup=WARMUP,
            num_samples=DRAWS,
            num_chains=CHAINS,
            thinning=THIN,
            chain_method="sequential",
            progress_bar=False,
        )
        mcmc.run(jax.random.key(0), x, y, frame)
        draws = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
    rhat = {k: convergence.rhat(v) for k, v in draws.items()}
    if max(rhat.values()) >= MAX_RHAT:
        raise RuntimeError(f"{name}: R-hat {rhat} is not below {MAX_RHAT}; run longer chains")
    summary = {
        k: {
            "mean": float(v.mean()),
            "sd": float(v.std(ddof=1)),
            "ess_bulk": convergence.ess_bulk(v),
            "rhat": rhat[k],
        }
        for k, v in draws.items()
    }
    return {
        "prior": name,
        "fingerprint": prior.fingerprint,
        "chains": CHAINS,
        "draws": DRAWS // THIN,
        "x": x.tolist(),
        "y": y.tolist(),
        "parameters": summary,
    }


def main() -> None:
    """Write one JSON file per prior."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--prior", choices=sorted(SEEDS), action="append")
    arguments = parser.parse_args()
    for name in arguments.prior or sorted(SEEDS):
        text = json.dumps(reference(name), indent=1)
        path = arguments.out / f"{name}.json"
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
