"""What runs inside RecBole's own environment: it imports recbole and nothing of ours.

python driver.py describe MODEL        one line of JSON: whether RecBole has it, and whether it is sequential
python driver.py fit JOB.json          train, judge with RecBole's metrics, write lists.npz and result.json
python driver.py time JOB.json         seconds of so many training steps and of one evaluation
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import ModelType, get_model, get_trainer, init_seed


def describe(name):
    try:
        found = get_model(name)
    except ValueError:
        return {"known": False}
    return {"known": True, "sequential": found.type == ModelType.SEQUENTIAL}


def prepared(job):
    """(config, dataset, loaders, model, trainer) as `recbole.quick_start` makes them."""
    folder = Path(job["folder"])
    settings = {
        "data_path": str(folder.parent),
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": job["columns"], "item": ["item_id"]},
        "alias_of_item_id": ["item_id_list"] if job["sequential"] else None,
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "MAX_ITEM_LIST_LENGTH": job["window"],
        # the parts are given, so that only the mode counts; sequence models insist on time order all the same
        "eval_args": {
            "split": {"RS": [0.8, 0.1, 0.1]},
            "order": "TO" if job["sequential"] else "RO",
            "group_by": "user",
            "mode": "full",
        },
        "metrics": ["Hit", "NDCG", "Recall", "MRR"],
        "topk": job["ks"],
        "valid_metric": f"NDCG@{job['ks'][0]}",
        "seed": job["seed"],
        "reproducibility": True,
        "show_progress": False,
        "use_gpu": False,
        "save_dataset": False,
        "checkpoint_dir": job["out"],
        **job["settings"],
    }
    try:
        config = Config(model=job["model"], dataset=folder.name, config_dict=settings)
    except ValueError as error:
        if "train_neg_sample_args" not in str(error):
            raise
        # its default asks for drawn negatives, which a softmax loss refuses
        settings["train_neg_sample_args"] = None
        config = Config(model=job["model"], dataset=folder.name, config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train._dataset).to(config["device"])
    return (
        config,
        dataset,
        (train, valid, test),
        model,
        get_trainer(config["MODEL_TYPE"], config["model"])(config, model),
    )


def fit(job):
    config, dataset, (train, valid, test), model, trainer = prepared(job)
    began = time.perf_counter()
    best, _ = trainer.fit(train, valid, saved=True, show_progress=False, callback_fn=tell)
    seconds = time.perf_counter() - began
    own = trainer.evaluate(test, load_best_model=True, show_progress=False)
    users, lists = ranked(job, dataset, test, model)
    np.savez(Path(job["out"]) / "lists.npz", users=users, lists=lists)
    result = {
        "metrics": {name: float(value) for name, value in own.items()},
        "valid": float(best),
        "seconds": seconds,
        "parameters": int(sum(value.numel() for value in model.parameters())),
        "versions": {
            "recbole": __import__("recbole").__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "settings": {name: repr(value) for name, value in sorted(config.final_config_dict.items())},
    }
    (Path(job["out"]) / "result.json").write_text(json.dumps(result, indent=2))


def tell(epoch, score):
    print(f"epoch {epoch + 1}: validation {score:.4f}", flush=True)


def ranked(job, dataset, test, model):
    """(user index [Q], item index [Q, depth], -1 pads) of every row of the test part, best first."""
    model.eval()
    index = np.array(
        [-1] + [int(token[1:]) for token in dataset.id2token("item_id", np.arange(1, dataset.item_num))]
    )
    place = np.empty(len(index) - 1, np.int64)
    place[index[1:]] = np.arange(1, len(index))
    seen = np.load(job["seen"])
    users, lists = [], []
    with torch.no_grad():
        for interaction, *_ in test:
            own = [int(token[1:]) for token in dataset.id2token("user_id", interaction["user_id"].numpy())]
            try:
                scores = model.full_sort_predict(interaction).view(len(own), -1)
            except NotImplementedError:
                wide = interaction.repeat_interleave(dataset.item_num)
                wide.update(dataset.get_item_feature().repeat(len(own)))
                scores = model.predict(wide).view(len(own), -1)
            scores[:, 0] = -np.inf
            for row, user in enumerate(own):  # what is not to be ranked, by our rule, not by RecBole's
                scores[row, place[seen["items"][seen["starts"][user] : seen["starts"][user + 1]]]] = -np.inf
            values, top = torch.topk(scores, min(job["depth"], scores.shape[1]))
            lists.append(np.where(torch.isfinite(values).numpy(), index[top.numpy()], -1))
            users += own
    return np.array(users), np.concatenate(lists)


def timed(job):
    _, _, (train, _, test), model, trainer = prepared(job)
    model.train()
    steps, positions, began = 0, 0, None
    for number, batch in enumerate(train):
        if number == job["warmup"]:
            began = time.perf_counter()
        trainer.optimizer.zero_grad()
        model.calculate_loss(batch.to(trainer.device)).backward()
        trainer.optimizer.step()
        if number >= job["warmup"]:
            steps, positions = steps + 1, positions + len(batch)
        if steps == job["steps"]:
            break
    training = time.perf_counter() - began
    began = time.perf_counter()
    trainer.evaluate(test, load_best_model=False, show_progress=False)
    judging = time.perf_counter() - began
    result = {"steps": steps, "positions": positions, "seconds": training, "judging": judging}
    (Path(job["out"]) / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    what, argument = sys.argv[1:]
    if what == "describe":
        print(json.dumps(describe(argument)))
    else:
        {"fit": fit, "time": timed}[what](json.loads(Path(argument).read_text()))
