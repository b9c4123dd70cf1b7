"""Settings of the cold-start model."""

from typing import Annotated, Literal

from pydantic import Field

from recsys.config import Config
from recsys.models.objective import Loss, ObjectiveConfig
from recsys.models.trunk import Share

Contrast = Literal["views", "ids", "together"]


class LinearConfig(Config):
    """The closed-form half of the model (see `recsys.models.coldstart.linear`)."""

    weight: Annotated[float, Field(gt=0)] = 8.0
    """What its scores are multiplied by before those of the network are added; without a network they lie between 0
    and 1 for the most part."""
    width: Annotated[int, Field(ge=1)] = 256
    """Dimensions of its vectors, beside those of the network."""
    regularisation: Annotated[float, Field(gt=0)] = 200.0
    """lambda of EASE."""
    content_regularisation: Annotated[float, Field(gt=0)] = 400.0
    """Of the regression on content."""
    half: Annotated[float, Field(gt=0)] = 2.0
    """Training rows at which an item is half its own vector, half what its content says."""


class ColdStartConfig(ObjectiveConfig):
    """Settings of the cold-start model."""

    tables: tuple[str, ...] = ("text",)
    """Tables of items and of users: typed fields, each of which is weighed for itself, or vectors, each table one
    field. A table is a group of the fusion."""
    width: Annotated[int, Field(ge=2)] = 64
    """Width of item and query vectors, the item's bias included."""
    whiten: Annotated[int, Field(ge=1)] = 128
    """Most whitened dimensions kept of a table of vectors."""
    hidden: Annotated[int, Field(ge=1)] = 32
    """Hidden units of the gates and of each group's layer."""
    selection: bool = True
    """Weigh fields against each other; off = all alike."""
    fusion: bool = True
    """Weigh groups of fields against each other; off = their mean."""
    contrastive: tuple[Contrast, ...] = ("views", "ids")
    """Pairs of the contrastive loss; none = without it. views: an item's content with different fields hidden; ids: an
    item's id vector and its content; together: two items of one user."""
    contrast_weight: Annotated[float, Field(ge=0)] = 0.1
    """lambda: weight of the contrastive loss, the mean over its kinds of pairs."""
    temperature: Annotated[float, Field(gt=0)] = 0.2
    """tau of the contrastive loss."""
    contrast_items: Annotated[int, Field(ge=2)] = 512
    """Most items of a step that the contrastive loss compares."""
    entropy_weight: Annotated[float, Field(ge=0)] = 0.01
    """eta: reward for weights spread over fields, so that selection does not fall in with a single one."""
    modality_dropout: Share = 0.2
    """Share of items, and of users, for which a group of content is taken for missing in a training step, each for
    itself."""
    id_dropout: Share = 0.3
    """Share of items, and of users, whose id vector is hidden in a training step: they are then scored as cold ones
    are, beside warm ones, which puts both on one scale."""
    history_dropout: Share = 0.1
    """Share of users whose history is hidden in a training step, so that attributes alone learn to ask."""
    user_ids: bool = True
    """A learnt vector a user; off = users are their history and attributes."""
    pretrained: Annotated[float, Field(gt=0)] | None = None
    """Id vectors begin as those of weighted matrix factorisation of the training rows (see `teacher.wmf`), scaled to
    this mean length; None = at random."""
    pretrained_regularisation: Annotated[float, Field(gt=0)] = 50.0
    """Of that factorisation's least squares."""
    frozen: bool = False
    """Leave pretrained id vectors as they are: less is learnt, and less by heart, where there are few rows."""
    dropout: Share = 0.0
    """Dropout on the fused vectors of items and users."""
    half_life: Annotated[float, Field(gt=0)] | None = None
    """Events after which what a user did counts half; None = all alike."""
    causal: bool = False
    """A training step shows what came before a random moment of each user and asks for what came after; off: it shows a
    random part and asks for the rest, whatever the order."""
    context: bool = False
    """Hour and weekday (UTC) of the query as a further group; of use where queries have times of their own."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Users a step."""
    targets: Annotated[int, Field(ge=1)] = 100
    """Most items that a step asks of each user, drawn anew every time."""
    linear: LinearConfig | None = None
    """A closed-form half, whose scores are added; None = the network alone."""
    loss: Loss = "full"
    """The recommendation loss (see `ObjectiveConfig`)."""
