"""Settings of the writer: how an item's neighbours reach a language model, and what of it learns."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recsys.config import Config


class WriterConfig(Config):
    """Settings of the writer."""

    entry: Literal["none", "prefix", "cross"] = "prefix"
    """How neighbours enter. none: not at all. prefix: their tokens stand before the prompt (SA-E). cross: new gated
    layers between the model's own attend to them (CA-E)."""
    own: tuple[str, ...] = ("image",)
    """Feature tables of which the item's own row is a token too; none that holds the text to be written."""
    tables: tuple[str, ...] = ("text", "image")
    """Feature tables that neighbours are read by, one modality each."""
    neighbours: Annotated[int, Field(ge=1)] = 5
    """Neighbouring items that are read."""
    tokens: Annotated[int, Field(ge=1)] = 4
    """Tokens of each modality of each neighbour (k)."""
    position: Literal["rank", "laplacian", "gnn", "none"] = "rank"
    """What tells neighbours apart: their rank, eigenvectors of the small graph's Laplacian, two layers of graph
    convolution over it, or nothing."""
    whiten: Annotated[int, Field(ge=1)] = 256
    """Most whitened dimensions kept of each table."""
    every: Annotated[int, Field(ge=1)] = 6
    """cross: a new layer after every so many of the model's own."""
    lora_rank: Annotated[int, Field(ge=0)] = 8
    """Rank of the adapters of all linear layers, whose part is multiplied by 2; 0 = the language model is frozen, and
    only what neighbours enter by learns."""
    max_prompt_tokens: Annotated[int, Field(ge=1)] = 64
    """Tokens of a prompt; of a longer one, the last are read."""
    max_text_tokens: Annotated[int, Field(ge=1)] = 96
    """Tokens of a text that are learnt, and most that are written."""
    no_repeat: Annotated[int, Field(ge=0)] = 3
    """No run of so many tokens is written twice in a text; 0 = it may be."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Items of a step."""
    new_lr_scale: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of the parts that start from scratch (maps, places, new layers), as a multiple of the loop's, which
    is that of the adapters."""

    @property
    def reads(self) -> tuple[str, ...]:
        """All tables, each once."""
        return () if self.entry == "none" else tuple(dict.fromkeys((*self.own, *self.tables)))

    @model_validator(mode="after")
    def _something_to_learn(self):
        if self.entry == "none" and not self.lora_rank:
            raise ValueError("nothing would learn: an entry, or lora_rank above 0")
        if self.entry != "none" and not self.reads:
            raise ValueError("a table to make tokens of, in tables or own")
        return self
