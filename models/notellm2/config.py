"""Settings of NoteLLM-2, and what each variant switches on."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recsys.models.embedders.config import PairLossConfig
from recsys.models.notellm2.prompt import Prompt


class NoteLLM2Config(PairLossConfig):
    """NoteLLM-2 (arXiv 2405.16789), as released, with each departure a setting."""

    variant: Literal["base", "micl", "late_fusion", "full", "residual"] = "full"
    """base: one note with picture and text, one vector. micl: a visual note, then a textual note (multimodal in-context
    learning); a vector at the end of each. late_fusion: text alone in the prompt, the gate mixes the picture in.
    full: micl and the gate. residual: full, with the picture added once more behind the gate, as first released."""
    table: str = "image"
    """The table of frozen visual features: pooled vectors, or several visual tokens a row, the global one first. Its
    name begins with "image"."""
    image_tokens: Annotated[int, Field(ge=1)] = 1
    """Visual tokens of a row of `table`."""
    prompt: Prompt = Prompt()
    """The words around picture and text."""
    max_text_tokens: Annotated[int, Field(ge=1)] = 96
    """Tokens of an item's text; it is cut before the prompt's ending is put behind it."""
    layers: Annotated[int, Field(ge=1)] | None = None
    """The language model's first so many layers are used; None = all."""
    tune: Literal["lora", "last", "full"] = "lora"
    """What learns of the language model: low-rank adapters of all linear layers, the last layers, or everything."""
    last_layers: Annotated[int, Field(ge=0)] = 2
    """Layers that learn under tune = "last"; 0 = the language model is frozen."""
    lora_rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the adapters; what they add is multiplied by 2 (alpha twice the rank)."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision that frozen weights are held in under tune = "lora"; what learns is held in float32."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's products, in training and afterwards; the loss is float32 in any case."""
    gradient_checkpointing: bool = False
    """Keep the layers' inputs alone for the backward pass: less memory, a third more time."""
    connector: Literal["linear", "mlp", "qformer"] = "mlp"
    """What makes `visual_tokens` inputs of the language model from visual features: one matrix, two with GELU, or a
    BLIP-2 Q-Former from scratch, whose queries start from N(0, 0.02) (started from zero, as released, all are one)."""
    visual_tokens: Annotated[int, Field(ge=1)] = 4
    """Places that a picture takes in the prompt; the paper has 16."""
    qformer_layers: Annotated[int, Field(ge=1)] = 2
    """Layers of the Q-Former; the paper has 6."""
    qformer_width: Annotated[int, Field(ge=8)] = 256
    """Width of the Q-Former, a multiple of 64 or less than that; the paper has 768."""
    balance_norms: bool = True
    """Bring picture and hidden state to one length before the gate; off = as released: the longer one wins."""
    visual_weight: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the loss on the visual vector; 0.1 is the paper's 9:1."""
    text_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of training notes whose text is blanked, where there is a picture."""
    image_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of training notes whose picture is taken away, where there is a text."""
    new_lr_scale: Annotated[float, Field(gt=0)] = 10.0
    """Learning rate of the parts that start from scratch (connector, gate, head, temperature), as a multiple of the
    loop's, which is that of the language model."""
    chunk: Annotated[int, Field(ge=1)] | None = None
    """Notes that are encoded at once: a batch of any size in the memory of so many (GradCache), with the same
    gradients, for one forward pass more. None = the whole batch at once. One process only."""

    @property
    def micl(self) -> bool:
        """Two notes in the prompt, and two vectors."""
        return self.variant in ("micl", "full", "residual")

    @property
    def fuses(self) -> bool:
        return self.variant in ("late_fusion", "full", "residual")

    @property
    def sees(self) -> bool:
        """The picture stands in the prompt."""
        return self.variant != "late_fusion"

    @model_validator(mode="after")
    def _fits(self):
        if not self.table.startswith("image"):
            raise ValueError("a table whose name begins with 'image'")
        if self.frozen_dtype != "float32" and self.tune != "lora":
            raise ValueError("frozen_dtype for tune = 'lora' only: what learns is float32")
        if self.connector == "qformer" and self.qformer_width > 64 and self.qformer_width % 64:
            raise ValueError("qformer_width a multiple of 64")
        return self
