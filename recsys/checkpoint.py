"""Checkpoints of the training loop: safetensors and JSON, written atomically, no pickle."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save

from recsys.averaging import Average
from recsys.files import new_folder, write_json

if TYPE_CHECKING:
    from recsys.models.base import Learner


class Checkpoint:
    """Weights, their average, optimiser state and progress of one training, in one folder that appears whole."""

    def __init__(self, folder: Path, model: "Learner", optimizer: Any, average: Average):
        self.path, self.model, self.optimizer, self.average = folder / "checkpoint", model, optimizer, average

    def exists(self) -> bool:
        return (self.path / "progress.json").exists()

    def save(self, progress: dict[str, Any], best: dict[str, torch.Tensor] | None = None) -> None:
        with new_folder(self.path) as folder:
            (folder / "weights.safetensors").write_bytes(save(_contiguous(self.model.module.state_dict())))
            moments = {
                f"{index}.{name}": value if torch.is_tensor(value) else torch.tensor(value)
                for index, entry in self.optimizer.state_dict()["state"].items()
                for name, value in entry.items()
            }
            (folder / "optimizer.safetensors").write_bytes(save(_contiguous(moments)))
            averages = {str(index): value for index, value in enumerate(self.average.values)}
            (folder / "average.safetensors").write_bytes(save(_contiguous(averages)))
            if best is not None:
                (folder / "best.safetensors").write_bytes(save(_contiguous(best)))
            elif (self.path / "best.safetensors").exists():
                (folder / "best.safetensors").write_bytes((self.path / "best.safetensors").read_bytes())
            environment = {"torch": torch.__version__, "threads": torch.get_num_threads()}
            write_json(folder / "progress.json", {"progress": progress, "environment": environment})

    def load(self) -> dict[str, Any]:
        """Puts weights, average and moments back; returns the progress."""
        self.model.module.load_state_dict(load((self.path / "weights.safetensors").read_bytes()))
        averages = load((self.path / "average.safetensors").read_bytes())
        for index, value in enumerate(self.average.values):
            value.copy_(averages[str(index)])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in load((self.path / "optimizer.safetensors").read_bytes()).items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": moments, "param_groups": whole["param_groups"]})
        return json.loads((self.path / "progress.json").read_text())["progress"]

    def load_best(self) -> dict[str, torch.Tensor]:
        return load((self.path / "best.safetensors").read_bytes())


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
