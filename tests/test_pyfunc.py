"""The bundle as MLflow's pyfunc: loaded in Python, and behind MLflow's own server."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loopback import call

from recsys.bundle import Bundle
from recsys.errors import RecsysError
from recsys.serving.engine import Query, RankingEngine
from recsys.tracking import tracking_uri


@pytest.fixture(scope="module")
def pyfunc(tracked, tracked_root):
    import mlflow

    before = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracking_uri(None, tracked_root))
    yield mlflow.pyfunc.load_model("models:/tiny/1")
    mlflow.set_tracking_uri(before[0])
    os.environ.pop("MLFLOW_TRACKING_URI") if before[1] is None else None


def rows(bundle: Bundle) -> list[dict]:
    user = bundle.users["user_id"][3]
    return [
        {"user_id": user, "k": 5},
        {"history": [3, 24, 11], "k": 4, "width": 8},
        {"history": [3, 24, 11], "candidates": [7, 2, 30]},
        {"user_id": 10**9},
    ]


def expected_lists(bundle: Bundle) -> list:
    engine = RankingEngine(bundle)
    return [
        engine.recommend(Query(user_id=bundle.users["user_id"][3]), 5),
        engine.recommend(Query(history=[3, 24, 11], width=8), 4),
        engine.rank(Query(history=[3, 24, 11]), [7, 2, 30]),
        engine.recommend(Query(user_id=10**9), 10),
    ]


def same(answers: list[dict], expected: list) -> None:
    assert len(answers) == len(expected)
    for answer, ranked in zip(answers, expected, strict=True):
        assert answer["items"] == [item.item_id for item in ranked.items]
        assert answer["scores"] == pytest.approx([item.score for item in ranked.items], abs=1e-6)
        assert answer["fallback"] == ranked.fallback


def test_pyfunc_answers_as_the_engine(tracked, pyfunc):
    import pandas as pd

    bundle = Bundle.open(tracked.bundle)
    asked, expected = rows(bundle), expected_lists(bundle)
    same(pyfunc.predict(asked), expected)
    same(pyfunc.predict(asked[0]), expected[:1])
    for row, ranked in zip(asked, expected, strict=True):
        same(pyfunc.predict(pd.DataFrame([row])), [ranked])
    # rows of different kinds in one frame: pandas makes 3 to 3.0 and fills the gaps with NaN
    same(pyfunc.predict(pd.DataFrame(asked)), expected)


def test_pyfunc_names_what_it_does_not_know(pyfunc):
    with pytest.raises(RecsysError, match="unknown column 'users'"):
        pyfunc.predict([{"users": 3}])
    with pytest.raises(RecsysError, match=r"user_id 3\.5"):
        pyfunc.predict([{"user_id": 3.5}])


def test_mlflow_models_serve(tracked, tracked_root):
    """MLflow's own server in this environment, over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/tiny/1"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ["PATH"]]
    )  # it looks for uvicorn there
    env = dict(os.environ) | {"MLFLOW_TRACKING_URI": f"sqlite:///{tracked_root}/mlflow.db", "PATH": path}
    with open(tracked_root / "serve.log", "wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(600):
            assert process.poll() is None, (tracked_root / "serve.log").read_text()
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
            except OSError:
                time.sleep(0.1)
        bundle = Bundle.open(tracked.bundle)
        asked, expected = rows(bundle), expected_lists(bundle)
        for row, ranked in zip(asked, expected, strict=True):
            status, answer = call(f"http://127.0.0.1:{port}/invocations", {"dataframe_records": [row]})
            assert status == 200, answer
            same(answer["predictions"], [ranked])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
