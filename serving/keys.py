"""API keys: read from a file, kept as digests, compared in constant time."""

import hashlib
import hmac
import logging
import stat
from collections.abc import Iterable
from pathlib import Path

from recsys.errors import ServingError

logger = logging.getLogger("recsys")


class KeyRing:
    """Keys that open the server. The keys themselves are not kept."""

    def __init__(self, keys: Iterable[str]):
        """Raises ServingError where there is none: nobody could ask."""
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        if not self._digests:
            raise ServingError("no API key", expected="one or more")

    @classmethod
    def of_file(cls, path: Path) -> "KeyRing":
        """One key a line; blank lines and lines that begin with # are skipped. Warns where others may read the file.

        Raises ServingError for a file that cannot be read or holds no key.
        """
        try:
            mode = path.stat().st_mode
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ServingError(f"cannot be read ({error})", where=path, fix="give a file of keys") from None
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise ServingError("no API key", where=path, expected="one key a line")
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            logger.warning("%s can be read by others; chmod 600 keeps the API keys to you", path)
        return cls(keys)

    def holds(self, key: bytes) -> bool:
        """Whether the key is one of them. All are compared, however early one fits, so that time tells nothing."""
        digest, held = hashlib.sha256(key).digest(), False
        for own in self._digests:
            held |= hmac.compare_digest(digest, own)
        return held
