"""A tiny decoder with random weights, and items whose text tells their topic and whose picture their style."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from text_models import save_llama

from recsys.features.language import open_language_model
from recsys.models.embedders.contract import ItemContent, PairContext
from recsys.models.notellm2.config import NoteLLM2Config
from recsys.models.notellm2.embedder import NoteLLM2
from recsys.models.notellm2.language import LanguageModel
from recsys.schema import Dense
from recsys.train import fit
from recsys.train_config import TrainConfig

TOPICS, STYLES, FEATURES = 4, 4, 32
SMALL = {"widths": (4, 8), "batch_size": 16, "tune": "last", "last_layers": 1, "visual_tokens": 2}


@cache
def folder() -> Path:
    """A saved Llama of two layers, width 16."""
    path = Path(mkdtemp(prefix="recsys-llama-"))
    save_llama(path)
    return path


def language() -> LanguageModel:
    """A new one at each call: training changes it."""
    found, tokenizer = open_language_model(str(folder()))
    return LanguageModel(found.model, tokenizer, found.facts)


def items(count: int, seed: int = 0) -> tuple[ItemContent, np.ndarray, np.ndarray]:
    """(content, topic, style): two words of the topic's ten in the text; the picture is a direction of the style
    under a much larger one that says nothing."""
    rng = np.random.default_rng(seed)
    topic_I, style_I = rng.integers(TOPICS, size=count), rng.integers(STYLES, size=count)
    texts = [" ".join(f"w{10 * topic + word}" for word in rng.integers(10, size=2)) for topic in topic_I]
    fixed = np.random.default_rng(7)
    directions, loud = fixed.normal(size=(STYLES, FEATURES)), fixed.normal(size=(8, FEATURES))
    image_IF = directions[style_I] + 1.5 * rng.normal(size=(count, 8)) @ loud
    table = Dense(image_IF.astype(np.float32), np.ones(count, bool))
    return ItemContent(texts, {"image": table}), topic_I, style_I


def pairs(topic_I: np.ndarray, style_I: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Pairs of items that share both."""
    kind_I, rng = topic_I * STYLES + style_I, np.random.default_rng(seed)
    found: list[tuple[int, int]] = []
    while len(found) < count:
        left = int(rng.integers(len(kind_I)))
        others = np.flatnonzero((kind_I == kind_I[left]) & (np.arange(len(kind_I)) != left))
        if len(others):
            found.append((left, int(rng.choice(others))))
    return np.array(found)


def trained(epochs: int = 1, count: int = 60, seed: int = 0, **config) -> tuple[NoteLLM2, ItemContent]:
    content, topic_I, style_I = items(count)
    model = NoteLLM2(NoteLLM2Config(**SMALL | config))
    ctx = PairContext(pairs(topic_I, style_I, 64), content, open_language=language, seed=seed)
    fit(model, ctx, TrainConfig(epochs=epochs, lr=1e-3))
    return model, content
