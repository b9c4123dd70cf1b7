"""The smallest recipe that has everything: content, a looped model with widths, closed-form ones, MLflow."""

from pathlib import Path

RECIPE = """
name = "tiny"
seeds = [0, 1]

[data]
kind = "dataset"
path = "{data}"

[split]
method = "leave_last_out"
catalogue = "listed"

[features.words]
kind = "hash_text:HashText"
template = "{{title}} {{category}}"

[models.popularity]

[models.ease]
regularisation = 5.0

[models.fmrlrec]
tables = ["words"]
widths = [4, 8, 16]
blocks = 1
window = 8
batch_size = 64

[train]
epochs = {epochs}
lr = 1e-2
checkpoint_steps = 1

[train.monitor]
metric = "ndcg_at_5"

[evaluate]
ks = [5, 10]
widths = "all"
bootstrap = 50

[track]
enabled = {track}
"""


def write_recipe(path: Path, data: Path, *, epochs: int = 2, track: bool = True) -> Path:
    path.write_text(RECIPE.format(data=data, epochs=epochs, track=str(track).lower()))
    return path
