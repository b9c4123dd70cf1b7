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


def pin_threads(count: int) -> bool:
    """Give this process, and those it starts, `count` threads each. False where numpy or polars is loaded already,
    which then keeps its threads."""
    os.environ.update(dict.fromkeys(VARIABLES, str(count)))
    return "numpy" not in sys.modules and "polars" not in sys.modules
