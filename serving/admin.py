"""The admin plane: what is served, another bundle, the one before. On a port of its own, on this machine only."""

from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from recsys.errors import BundleError, ServingError
from recsys.serving.api import problem
from recsys.serving.rollout import Rollout


class Reload(BaseModel):
    """Which bundle to serve from now on."""

    model_config = ConfigDict(extra="forbid")
    bundle: Path


def admin_app(rollout: Rollout, use: Callable[[Path], None]) -> FastAPI:
    """/admin/status, /admin/reload, /admin/rollback. use(path) loads a bundle and has the other processes follow."""
    app = FastAPI(title="recsys admin", docs_url=None, redoc_url=None)

    @app.exception_handler(BundleError)
    @app.exception_handler(ServingError)
    async def refused(request, error):
        return problem(409, "The bundle in use goes on", str(error))

    @app.get("/admin/status")
    def status() -> dict[str, object]:
        current, previous, shadow = rollout.current, rollout.previous, rollout.shadow
        return {
            "bundle_id": current.bundle_id,
            "bundle": str(current.path),
            "loaded_at": current.loaded_at,
            "previous": None if previous is None else str(previous.path),
            "failures": dict(rollout.failures),
            "last_failure": rollout.last_failure,
            "shadow_overlap": None if shadow is None else shadow.overlap,
        }

    @app.post("/admin/reload")
    def reload(body: Reload) -> dict[str, object]:
        use(body.bundle)
        return status()

    @app.post("/admin/rollback")
    def rollback() -> dict[str, object]:
        if rollout.previous is None:
            rollout.rollback()  # says that there is none
        use(rollout.previous.path)
        return status()

    return app
