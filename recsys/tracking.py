"""MLflow: runs, metrics, the bundle as artefact, the model registry. The only module that imports mlflow.

No server is needed: the default is a SQLite file in the output folder. Every call is idempotent: a run is found
again by its box key, so that a killed and resumed `recsys run` leaves one run, not two.
"""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from recsys.errors import RecsysError, require

KEY_TAG, REPORT_TAG, TRACES_TAG = "recsys.key", "recsys.report", "recsys.traces"
_PARAM_LENGTH = 6000  # MLflow refuses longer parameter values
_SQLITE = "sqlite:///"


class Tracking:
    """One MLflow tracking store and experiment."""

    def __init__(self, uri: str | None, root: Path, experiment: str):
        """uri None: MLFLOW_TRACKING_URI, else `root`/mlflow.db with artefacts beside it."""
        self.mlflow = _mlflow("train", "tracking a run (or set track.enabled = false)")
        self.uri = tracking_uri(uri, root)
        with _reaching(self.uri):
            new_database(self.uri)
            self.client = self.mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            found = self.client.get_experiment_by_name(experiment)
        if found is not None:
            self.experiment_id = found.experiment_id
        else:
            own = self.uri.startswith(_SQLITE)
            artefacts = (root / "mlartifacts").resolve().as_uri() if own else None
            self.experiment_id = self.client.create_experiment(experiment, artifact_location=artefacts)

    def ensure_run(self, key: str, name: str, params: Mapping[str, Any], parent: str | None = None) -> str:
        """The id of the run with this box key, created where there is none."""
        query = f"tags.`{KEY_TAG}` = '{key}'"
        found = self.client.search_runs([self.experiment_id], filter_string=query, max_results=1)
        if found:
            run = found[0]
        else:
            tags = {KEY_TAG: key} | ({"mlflow.parentRunId": parent} if parent else {})
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=name)
        # those of a run that was killed between its creation and its parameters are still to come
        entities = self.mlflow.entities
        missing = {name: value for name, value in flatten(params).items() if name not in run.data.params}
        flat = [entities.Param(name, value[:_PARAM_LENGTH]) for name, value in missing.items()]
        for start in range(0, len(flat), 100):
            self.client.log_batch(run.info.run_id, params=flat[start : start + 100])
        return run.info.run_id

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

    def log_traces(self, run_id: str, traces: Sequence[Mapping[str, Any]]) -> None:
        """Questions to a language model, each {name, inputs, outputs, tokens: (prompt, completion), attributes}; once a
        run, however often it is called."""
        if TRACES_TAG in self.tags(run_id):
            return
        before = os.environ.get("MLFLOW_TRACKING_URI")  # set_tracking_uri keeps it in step with what it sets
        self.mlflow.set_tracking_uri(self.uri)  # spans go there alone, whatever client began them
        try:
            for trace in traces:
                self._log_trace(run_id, trace)
            self.mlflow.flush_trace_async_logging()
        finally:
            self.mlflow.set_tracking_uri(before)
        self.tag(run_id, {TRACES_TAG: str(len(traces))})

    def _log_trace(self, run_id: str, trace: Mapping[str, Any]) -> None:
        prompt, completion = trace["tokens"]
        usage = {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}
        span = self.client.start_trace(
            trace["name"],
            span_type="LLM",
            inputs=trace["inputs"],
            attributes=dict(trace["attributes"]) | {"mlflow.chat.tokenUsage": usage},
            experiment_id=self.experiment_id,
            run_id=run_id,
        )
        self.client.end_trace(span.trace_id, outputs=trace["outputs"])

    def finish(self, run_id: str) -> None:
        self.client.set_terminated(run_id, "FINISHED")

    def register(self, run_id: str, bundle: Path, name: str, bundle_id: str) -> str:
        """Log the bundle as a pyfunc model (loader module and data, no pickle), make it a model version
        with the alias `candidate`, and `champion` where the name has none. Returns the version number."""
        run = self.client.get_run(run_id)
        artefact = f"bundle-{bundle_id[:12]}"
        source = f"{run.info.artifact_uri}/{artefact}"
        if self._registered(name) is None:
            self.client.create_registered_model(name)
        versions = self.client.search_model_versions(f"name = '{name}'")
        number = next((str(known.version) for known in versions if known.source == source), None)
        if number is None:
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
        # set even where the version was there: a run may have been killed between the two
        self.client.set_registered_model_alias(name, "candidate", number)
        if "champion" not in self._registered(name).aliases:
            self.client.set_registered_model_alias(name, "champion", number)
        return number

    def _registered(self, name: str) -> Any:
        try:
            return self.client.get_registered_model(name)
        except self.mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def promote(name: str, root: Path, uri: str | None = None, alias: str = "candidate") -> str:
    """Make the version behind `alias` the champion; returns its number. Raises RecsysError where there is none."""
    mlflow = _mlflow("train", f"promoting {name}")
    store = _existing(tracking_uri(uri, root))
    with _reaching(store):
        client = mlflow.MlflowClient(tracking_uri=store, registry_uri=store)
        try:
            number = str(client.get_model_version_by_alias(name, alias).version)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise RecsysError(
                f"no model {name!r} with alias {alias!r}", where=store, fix="recsys run registers one"
            ) from None
        client.set_registered_model_alias(name, "champion", number)
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
    mlflow = _mlflow("registry", f"opening {uri}")
    store = _existing(tracking_uri(tracking, root))
    with _reaching(store):
        try:  # not by set_tracking_uri: it would change the store of everything that comes later
            source = _source(mlflow.MlflowClient(tracking_uri=store, registry_uri=store), uri)
            found = mlflow.artifacts.download_artifacts(source, tracking_uri=store, registry_uri=store)
        except mlflow.exceptions.MlflowException as error:
            raise RecsysError(
                f"cannot open ({error})",
                where=uri,
                expected=f"a model in {store}",
                fix="name the store with --tracking-uri, or run a recipe first",
            ) from None
    bundles = [path.parent for path in Path(found).glob("data/*/manifest.json")]
    if len(bundles) != 1:
        raise RecsysError("the model holds no bundle", where=uri, expected="a model logged by recsys run")
    return bundles[0]


def _source(client: Any, uri: str) -> str:
    """Where the artefacts of `models:/name@alias` or `models:/name/version` lie; another URI as it is."""
    kind, _, rest = uri.partition(":/")
    if kind != "models":
        return uri
    match = re.fullmatch(r"(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>[0-9]+))", rest)
    if match is None:
        raise RecsysError("not a model", where=uri, expected="models:/NAME@ALIAS or models:/NAME/VERSION")
    number = match["version"]
    if number is None:
        number = client.get_model_version_by_alias(match["name"], match["alias"]).version
    return client.get_model_version_download_uri(match["name"], str(number))


def _mlflow(extra: str, purpose: str) -> ModuleType:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    mlflow = require("mlflow", extra, purpose=purpose)
    for name in ("alembic", "mlflow"):  # the first use of a SQLite file logs a page of migrations
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def new_database(uri: str) -> None:
    """Make a missing SQLite file beside its place and rename it: MLflow fills it in hundreds of steps, and cannot
    use or mend a file whose making was cut short."""
    path = Path(uri.removeprefix(_SQLITE))
    if not uri.startswith(_SQLITE) or path.exists():
        return
    mlflow = _mlflow("train", "making an MLflow store")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        beside = f"{_SQLITE}{temporary}/{path.name}"
        mlflow.MlflowClient(tracking_uri=beside, registry_uri=beside).search_registered_models(max_results=1)
        os.replace(Path(temporary) / path.name, path)


def _existing(uri: str) -> str:
    """The URI itself; raises RecsysError for a SQLite file that is not there, which MLflow would make."""
    if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).is_file():
        raise RecsysError(
            "no MLflow store here", where=uri, fix="name it with --tracking-uri, or run a recipe first"
        )
    return uri


@contextlib.contextmanager
def _reaching(uri: str) -> Iterator[None]:
    """A store that cannot be had is told in one line."""
    try:
        yield
    except RecsysError:
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("mlflow", "sqlalchemy"):
            raise
        reason = str(error).splitlines()[0]
        raise RecsysError(f"MLflow cannot use this store ({reason})", where=uri) from None
