"""The amortized side: a prior-data fitted network for each prior."""
