"""Priors over scaling laws, and the engines that need nothing but the law: NUTS and least squares."""
