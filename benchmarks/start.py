"""How long a first `hybrid fit --engine nuts` takes in a fresh process, with an empty and with a filled compilation cache.

python benchmarks/start.py
"""

import os
import subprocess
import sys
import tempfile
import time

COLD = 25.0  # seconds
WARM = 8.0
COMMAND = [sys.executable, "-m", "hybrid", "fit", "example:cerebras_gpt_pile", "--engine", "nuts"]


def seconds(cache: str) -> float:
    """Wall time of one fit in a process of its own."""
    start = time.perf_counter()
    environment = {**os.environ, "HYBRID_CACHE_DIR": cache}
    subprocess.run(COMMAND, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, and fail where a limit is passed."""
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = seconds(cache), seconds(cache)
    print(f"hybrid fit --engine nuts: cold cache {cold:.1f} s (at most {COLD:g}), warm cache {warm:.1f} s (at most {WARM:g})")
    sys.exit(cold > COLD or warm > WARM)


if __name__ == "__main__":
    main()
