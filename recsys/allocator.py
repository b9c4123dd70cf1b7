"""Large temporaries without page faults."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Make glibc keep what is freed for the next allocation of this process.

    By default it returns every block of a few megabytes to the kernel at once and faults all its pages in again for the
    next tensor of the same size: a fifth to two fifths of a step with a Mamba trunk, whose states are large, and next
    to nothing with the others. Elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
