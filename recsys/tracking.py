"""MLflow: runs, metrics, the bundle as artefact, the model registry. The only module that imports mlflow.

No server is needed: the default is a SQLite file in the output folder. Every call is idempotent: a run is found
again by its box key, so that a killed and resumed `recsys run` leaves one run, not two.
"""

import logging
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recsys.errors import RecsysError, require

KEY_TAG, REPORT_TAG = "recsys.key", "recsys.report"
_PARAM_LENGTH = 6000  # MLflow refuses longer parameter values


class Tracking:
    """One MLflow tracking store and experiment."""

    def __init__(self, uri: str | None, root: Path, experiment: str):
        """uri None: MLFLOW_TRACKING_URI, else `root`/mlflow.db with artefacts beside it."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        self.mlflow = require("mlflow", "train", purpose="tracking a run (or set track.enabled = false)")
        for name in ("alembic", "mlflow"):  # the first use of a SQLite file logs a page of migrations
            logging.getLogger(name).setLevel(logging.WARNING)
        self.uri = tracking_uri(uri, root)
        self.client = self.mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        found = self.client.get_experiment_by_name(experiment)
        if found is not None:
            self.experiment_id = found.experiment_id
        else:
            own = self.uri.startswith("sqlite:")
            artefacts = (root / "mlartifacts").resolve().as_uri() if own else None
            self.experiment_id = self.client.create_experiment(experiment, artifact_location=artefacts)

    def ensure_run(self, key: str, name: str, params: Mapping[str, Any], parent: str | None = None) -> str:
        """The id of the run with this box key, created where there is none."""
        query = f"tags.`{KEY_TAG}` = '{key}'"
        found = self.client.search_runs([self.experiment_id], filter_string=query, max_results=1)
        if found:
            return found[0].info.run_id
        tags = {KEY_TAG: key} | ({"mlflow.parentRunId": parent} if parent else {})
        run_id = self.client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id
        entities = self.mlflow.entities
        flat = [entities.Param(name, value[:_PARAM_LENGTH]) for name, value in flatten(params).items()]
        for start in range(0, len(flat), 100):
            self.client.log_batch(run_id, params=flat[start : start + 100])
        return run_id

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        batch = [self.mlflow.entities.Metric(name, float(value), 0, step) for name, value in metrics.items()]
        for start in range(0, len(batch), 500):
            self.client.log_batch(run_id, metrics=batch[start : start + 500])

    def log_folder(self, run_id: str, folder: Path, name: str) -> None:
        self.client.log_artifacts(run_id, str(folder), name)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self.client.set_tag(run_id, name, value)

    def tags(self, run_id: str) -> dict[str, str]:
        return dict(self.client.get_run(run_id).data.tags)

    def finish(self, run_id: str) -> None:
        self.client.set_terminated(run_id, "FINISHED")

    def register(self, run_id: str, bundle: Path, name: str, bundle_id: str) -> str:
        """Log the bundle as a pyfunc model (loader module and data, no pickle), make it a model version
        with the alias `candidate`, and `champion` where the name has none. Returns the version number."""
        run = self.client.get_run(run_id)
        artefact = f"bundle-{bundle_id[:12]}"
        source = f"{run.info.artifact_uri}/{artefact}"
        if not self.client.search_registered_models(filter_string=f"name = '{name}'"):
            self.client.create_registered_model(name)
        for known in self.client.search_model_versions(f"name = '{name}'"):
            if known.source == source:
                return str(known.version)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.mlflow.pyfunc.save_model(
                folder,
                loader_module="recsys.serving.pyfunc",
                data_path=str(bundle),
                pip_requirements=[f"recsys=={version('recsys')}"],
            )
            self.client.log_artifacts(run_id, str(folder), artefact)
        number = str(self.client.create_model_version(name, source, run_id).version)
        self.client.set_registered_model_alias(name, "candidate", number)
        if "champion" not in self.client.get_registered_model(name).aliases:
            self.client.set_registered_model_alias(name, "champion", number)
        return number

    def promote(self, name: str, alias: str = "candidate") -> str:
        """Make the version behind `alias` the champion; returns its number."""
        try:
            number = str(self.client.get_model_version_by_alias(name, alias).version)
        except self.mlflow.exceptions.MlflowException as error:
            raise RecsysError(
                f"no model {name!r} with alias {alias!r} in {self.uri} ({error})",
                fix="recsys run registers one",
            ) from None
        self.client.set_registered_model_alias(name, "champion", number)
        return number


def tracking_uri(uri: str | None, root: Path) -> str:
    """The given URI, the environment's, or the SQLite file in `root`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlflow.db').resolve()}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested tables to `a.b` parameters."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = str(value)
    return flat


def fetch_bundle(uri: str, root: Path, tracking: str | None = None) -> Path:
    """The bundle folder behind `models:/name@alias`, `models:/name/version` or `runs:/id/model`, downloaded.

    Raises RecsysError where the registry has no such model.
    """
    mlflow = require("mlflow", "registry", purpose=f"opening {uri}")
    mlflow.set_tracking_uri(tracking_uri(tracking, root))
    try:
        folder = Path(mlflow.artifacts.download_artifacts(uri))
    except mlflow.exceptions.MlflowException as error:
        raise RecsysError(
            f"cannot open ({error})",
            where=uri,
            expected=f"a model in {mlflow.get_tracking_uri()}",
            fix="name the store with --tracking-uri, or run a recipe first",
        ) from None
    found = [path.parent for path in folder.glob("data/*/manifest.json")]
    if len(found) != 1:
        raise RecsysError("the model holds no bundle", where=uri, expected="a model logged by recsys run")
    return found[0]
