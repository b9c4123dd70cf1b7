"""Items of topics, a tiny language model with random weights, and writers of them."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from text_models import save_llama

from recsys.features.language import open_language_model
from recsys.models.graph.writer import TextWriter
from recsys.models.graph.writer_config import WriterConfig
from recsys.models.graph.writer_content import WriterContent, WriterContext, alike
from recsys.models.graph.writer_language import CausalModel
from recsys.schema import Dense
from recsys.train import fit
from recsys.train_config import TrainConfig

TOPICS = 4
SMALL = {"neighbours": 3, "tokens": 2, "every": 1, "lora_rank": 2, "batch_size": 8, "max_text_tokens": 6}


@cache
def folder() -> Path:
    """A saved Llama of two layers, width 16."""
    path = Path(mkdtemp(prefix="recsys-llama-"))
    save_llama(path)
    return path


def language() -> CausalModel:
    """A new one at each call: a writer changes it."""
    found, tokenizer = open_language_model(str(folder()), writes=True)
    with torch.no_grad():  # random weights are small: what it reads would hardly matter to what it says
        for value in found.model.parameters():
            value *= 10 if value.ndim > 1 else 1
        found.model.get_output_embeddings().weight.mul_(3)
    return CausalModel(found.model, tokenizer, found.facts)


def items(count: int = 24, seed: int = 0) -> tuple[WriterContent, np.ndarray]:
    """(content, topic). A topic's text is four words of its own; the prompt is the same for all, and the picture tells
    the topic. The last quarter of the items has no text, and some have no picture."""
    rng = np.random.default_rng(seed)
    topic_I = rng.integers(TOPICS, size=count)
    texts = [" ".join(f"w{10 * topic + word}" for word in range(4)) for topic in topic_I]
    texts[-count // 4 :] = [None] * len(texts[-count // 4 :])
    directions = np.random.default_rng(7).normal(size=(2, TOPICS, 6))
    known_I = np.array([text is not None for text in texts])
    tables = {}
    for name, one_TF, present_I in zip(
        ("text", "image"), directions, (known_I, rng.random(count) < 0.9), strict=True
    ):
        values_IF = (one_TF[topic_I] + 0.1 * rng.normal(size=(count, 6))).astype(np.float32)
        values_IF[~present_I] = np.nan
        tables[name] = Dense(values_IF, present_I)
    neighbours_IN = alike([tables["image"]], known_I, SMALL["neighbours"])
    return WriterContent(["w100 w101"] * count, texts, tables, neighbours_IN), topic_I


def untrained(content: WriterContent, **config) -> TextWriter:
    writer = TextWriter(WriterConfig(**SMALL | config))
    writer.setup(WriterContext(content, language))
    return writer


def trained(content: WriterContent, epochs: int = 1, lr: float = 1e-2, **config) -> TextWriter:
    writer = TextWriter(WriterConfig(**SMALL | config))
    fit(writer, WriterContext(content, language), TrainConfig(epochs=epochs, lr=lr))
    return writer
