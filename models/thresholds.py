"""Where draws of Markov chains count as converged, and a model as holding a curve, with sources."""

MAX_RHAT = 1.01  # Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021, section 4
MIN_ESS = 400.0  # 100 per chain with the usual four chains, ibid.
MAX_DIVERGENT = 0.02  # share of transitions; Betancourt 2017 asks for none
MIN_FOLLOW = 0.01  # probability of the residuals' autocorrelation, which is conservative, or of their trend; see `residuals`
MIN_TRAINED = 20_000  # curves that a network saw in training, for it to be worth an answer
