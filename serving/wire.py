"""HTTP bodies: what is taken, within which limits, and what is answered."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_CANDIDATES, MAX_HISTORY, MAX_K = 10_000, 1_000, 1_000
MAX_BODY_BYTES = 1 << 20

Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
ItemId = Annotated[int, Field(ge=-(2**63), lt=2**63)] | Text
Seconds = Annotated[int, Field(ge=0, lt=100_000_000_000)]


class Body(BaseModel):
    """Base of every request body: unknown keys are errors, and so is "10" for 10."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class Asked(Body):
    """Who asks. A history wins over the stored one; with neither, the answer is the popular fallback."""

    user_id: ItemId | None = Field(None, description="Typed like the bundle's user ids: 42 is not '42'.")
    history: Annotated[list[ItemId], Field(max_length=MAX_HISTORY)] | None = Field(
        None, description="Item ids, oldest first."
    )
    width: int | None = Field(
        None, ge=1, le=65_536, description="Nested width of the model; default: the full one."
    )
    request_id: Text | None = Field(None, description="Given back in the answer; made up where absent.")


class RankBody(Asked):
    """Rank given candidates."""

    candidates: Annotated[list[ItemId], Field(min_length=1, max_length=MAX_CANDIDATES)]


class FilterBody(Body):
    """Which items may be recommended."""

    include: Annotated[list[ItemId], Field(max_length=MAX_CANDIDATES)] | None = None
    exclude: Annotated[list[ItemId], Field(max_length=MAX_CANDIDATES)] = Field(default_factory=list)
    category: Annotated[list[Text], Field(max_length=100)] = Field(default_factory=list)


class RecommendBody(Asked):
    """Recommend from the whole catalogue."""

    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10
    filters: FilterBody = Field(default_factory=FilterBody)
    exclude_seen: bool = Field(True, description="Leave out the items of the history.")


class EventBody(Body):
    """Something a user did. The same event_id is kept once."""

    event_id: Text
    user_id: ItemId
    item_id: ItemId
    timestamp: Seconds | None = Field(None, description="UTC seconds; the server's clock where absent.")


class ModelInfo(BaseModel):
    """Which model answered."""

    name: str
    bundle_id: str
    package_version: str


class Line(BaseModel):
    """One ranked item."""

    item_id: int | str
    score: float
    title: str | None = None


class Answer(BaseModel):
    """A ranked list, best first."""

    request_id: str
    model: ModelInfo
    items: list[Line]
    fallback: Literal["popular"] | None = Field(None, description="popular: nothing was known of the user.")
    unknown_items: list[int | str] = Field(description="Ids outside the catalogue; they are not ranked.")
    history_length: int
    timings_ms: dict[str, float]


class EventAnswer(BaseModel):
    """kept is false where this event_id was known already."""

    kept: bool


class Health(BaseModel):
    """How the process is. bundle_id: of the bundle that is served."""

    status: Literal["alive", "ready"]
    bundle_id: str | None = None


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
