"""Hybrid: probabilistic forecasts of neural scaling curves."""
