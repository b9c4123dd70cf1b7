"""The same extraction on Ray: actors encode chunks wherever the cluster has room, this process collects them."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from recsys.errors import ConfigError, FeatureError, RecsysError, require
from recsys.features.base import Content, Extractor
from recsys.features.chunks import Encoded, encode_here


def load() -> tuple[ModuleType, ModuleType]:
    """ray and ray.data. Raises MissingExtraError where they are not installed."""
    purpose = "engine 'ray'"
    return require("ray", "scale", purpose=purpose), require("ray.data", "scale", purpose=purpose)


def encode(
    extractor: Extractor, chunks: Sequence[Sequence[Content]], workers: int | None = None
) -> Iterator[Encoded]:
    """Chunks in the order in which they are done, encoded by `workers` actors (default: one a CPU of the cluster).

    Runs on the cluster that this process, or $RAY_ADDRESS, is connected to, else on one of its own on this machine.
    Files must lie where every node of the cluster can read them.
    """
    if not chunks:
        return
    ray, data = load()
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # an extractor of the user's own is importable there if it is here
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
        )
    try:
        room = int(ray.cluster_resources().get("CPU", 0))
        if workers is not None and not 1 <= workers <= room:
            raise ConfigError(f"{workers} workers", expected=f"1 to {room}, the CPUs of the Ray cluster")
        rows = [
            {
                "number": number,
                "contents": [str(content) for content in contents],
                "files": [isinstance(content, Path) for content in contents],
            }
            for number, contents in enumerate(chunks)
        ]
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # a block a chunk: what is done comes back, and is kept, without waiting for the rest
        dataset = data.from_items(rows, override_num_blocks=len(rows))
        dataset.context.enable_progress_bars = False
        encoded = dataset.map(
            _Actor,
            fn_constructor_args=(type(extractor), extractor.config),
            compute=data.ActorPoolStrategy(size=min(workers or max(room, 1), len(rows))),
            num_cpus=1,
        )
        for row in encoded.iter_rows():
            if row["error"]:
                raise FeatureError(row["error"])
            vectors = np.frombuffer(row["vectors"], np.float32).reshape(row["shape"])
            yield Encoded(int(row["number"]), vectors, dict(zip(row["bad"], row["reasons"], strict=True)))
    finally:
        if started:
            ray.shutdown()


class _Actor:
    """One process with its own copy of the extractor."""

    def __init__(self, extractor_class: type[Extractor], config: Any):
        self.extractor = extractor_class(config)
        self.extractor.workers = 0  # the other cores have actors of their own

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        contents = [
            Path(content) if is_file else content
            for content, is_file in zip(row["contents"], row["files"], strict=True)
        ]
        done, error = Encoded(0, np.zeros((0, 0), np.float32), {}), ""
        try:
            done = next(encode_here(self.extractor, [contents]))
        except RecsysError as raised:  # a user's mistake must arrive as such, not wrapped in Ray's own
            error = str(raised)
        return {
            "number": row["number"],
            "vectors": done.vectors.tobytes(),
            "shape": list(done.vectors.shape),
            "bad": list(done.unreadable),
            "reasons": list(done.unreadable.values()),
            "error": error,
        }
