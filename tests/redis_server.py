"""A Redis server of the tests' own, on a free loopback port, with its files in a given folder."""

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


class RedisServer:
    """Starts at once; kill() and start() again keep the port and the files. Skips the test without redis-server or
    the Python package."""

    def __init__(self, folder: Path, *options: str):
        self.redis = pytest.importorskip("redis", reason="the package `redis` is not installed")
        if shutil.which("redis-server") is None:
            pytest.skip("no redis-server here: apt-get install redis-server")
        self.folder, self.options = folder, options
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = self.redis.Redis.from_url(self.url)
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--dir", str(self.folder), *self.options], stdout=log, stderr=log
            )
        for _ in range(200):
            try:
                self.client.ping()
                return
            except self.redis.RedisError:
                time.sleep(0.05)
                if self.process.poll() is not None:
                    break
        self.kill()
        pytest.fail(f"redis-server did not start: {(self.folder / 'redis.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """As a crash would: without a last write."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.client.close()
        self.kill()
