"""Where draws of Markov chains count as converged, and a model as holding a curve, with sources."""

MAX_RHAT = 1.01  # Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, section 4
MIN_ESS = 400.0  # 100 per chain with the usual four chains, ibid.
MIN_FOLLOW = 0.01  # posterior predictive probability of the residuals' autocorrelation; conservative, see `residuals`
