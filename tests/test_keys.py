"""Keys: what a file may hold, and how they are compared."""

import logging

import pytest

from recsys.errors import ServingError
from recsys.serving.keys import KeyRing


def test_key_files(tmp_path, caplog):
    path = tmp_path / "keys"
    path.write_text("# ours\nalpha\n\n  beta  \n#gamma\nde#lta\n")
    path.chmod(0o600)
    ring = KeyRing.of_file(path)
    assert [ring.holds(key) for key in (b"alpha", b"beta", b"de#lta")] == [True] * 3
    assert not any(map(ring.holds, (b"", b"# ours", b"#gamma", b"gamma", b"ALPHA", b"alpha\n")))
    assert b"alpha" not in b"".join(ring._digests) and "alpha" not in repr(vars(ring))
    assert not caplog.records
    for mode in (0o640, 0o604):
        path.chmod(mode)
        KeyRing.of_file(path)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "chmod 600" in caplog.text
    path.write_text("\n# nothing\n")
    with pytest.raises(ServingError, match="no API key"):
        KeyRing.of_file(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ServingError, match="cannot be read"):
        KeyRing.of_file(path)
    with pytest.raises(ServingError, match="cannot be read"):
        KeyRing.of_file(tmp_path / "none")
    with pytest.raises(ServingError):
        KeyRing([])


def test_every_key_is_compared(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append(b) or a == b)
    ring = KeyRing(["a", "b", "c"])
    assert ring.holds(b"a") and len(compared) == 3
    assert not ring.holds(b"x") and len(compared) == 6
