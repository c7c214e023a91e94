"""Where JAX keeps the programs that it compiled, for every engine that runs on it."""

import os
import pathlib

import jax


def use_compilation_cache() -> None:
    """Let JAX keep compiled programs between processes, unless the user already configured it.

    The folder is $HYBRID_CACHE_DIR, else ~/.cache/hybrid (or $XDG_CACHE_HOME/hybrid).
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        folder = pathlib.Path(os.environ.get("HYBRID_CACHE_DIR") or root / "hybrid")
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
