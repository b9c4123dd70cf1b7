"""How many threads native code may start: decided in the environment, before that code is loaded."""

import os
import sys

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "POLARS_MAX_THREADS",
)


def pin_threads(count: int | None = None, workers: int = 1) -> bool:
    """Give every process `count` threads; by default the cores of this process divided among the workers, where the
    environment does not say otherwise. False where numpy or polars is loaded already, which then keeps its threads."""
    if count is None:
        for name in VARIABLES:
            os.environ.setdefault(name, str(max(1, cores() // workers)))
    else:
        os.environ.update(dict.fromkeys(VARIABLES, str(count)))
    return "numpy" not in sys.modules and "polars" not in sys.modules


def cores() -> int:
    """Cores that this process may use, which a container or taskset may make fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
