"""Where JAX keeps the programs that it compiled, for every engine that runs on it."""

import os
import pathlib

import jax

JAX_DEFAULT, KEPT_FROM = 1.0, 0.2  # seconds that a program takes to compile, from which on it is kept


def _configured() -> bool:
    return getattr(jax.config, "jax_compilation_cache_dir", None) is not None


def use_compilation_cache() -> None:
    """Let JAX keep compiled programs between processes, unless the user already configured it.

    The folder is $HYBRID_CACHE_DIR, else ~/.cache/hybrid (or $XDG_CACHE_HOME/hybrid); where it cannot be written to, none.
    """
    if _configured():
        return
    try:
        root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        folder = pathlib.Path(os.environ.get("HYBRID_CACHE_DIR") or root / "hybrid") / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    if os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if getattr(jax.config, "jax_persistent_cache_min_compile_time_secs", None) == JAX_DEFAULT:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", KEPT_FROM)
