"""HTTP bodies: what is taken, within which limits, and what is answered."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_CANDIDATES, MAX_HISTORY, MAX_K, MAX_NEW, MAX_BATCH = 10_000, 1_000, 1_000, 100, 100
MAX_BODY_BYTES = 8 << 20

Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
ItemId = Annotated[int, Field(ge=-(2**63), lt=2**63)] | Text
Attribute = str | int | float | bool | list[str] | None
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
    at: Seconds | None = Field(
        None,
        description="When it is asked, UTC seconds, for context and counts; the server's clock where absent.",
    )
    user_fields: Annotated[dict[Text, Attribute], Field(max_length=100)] = Field(
        default_factory=dict,
        description="Columns of the users table, for a model that reads attributes; they win over the bundle's.",
    )
    explain: bool = Field(False, description="What each feature adds to each score, where trees rank.")
    request_id: Text | None = Field(None, description="Given back in the answer; made up where absent.")


class ItemBody(Body):
    """An item by its content. What the bundle has an encoder for may come raw; `features` takes vectors."""

    item_id: ItemId
    title: Annotated[str, Field(max_length=10_000)] | None = None
    text: Annotated[str, Field(max_length=100_000)] | None = None
    category: Annotated[list[Text], Field(max_length=100)] = Field(default_factory=list)
    attributes: Annotated[dict[Text, Attribute], Field(max_length=100)] = Field(
        default_factory=dict, description="Columns of the items table, for a bundle with typed fields."
    )
    image: Annotated[str, Field(max_length=MAX_BODY_BYTES)] | None = Field(
        None, description="The bytes of a picture (JPEG, PNG, WebP ...), base64."
    )
    features: Annotated[
        dict[Text, Annotated[list[float], Field(max_length=65_536)]], Field(max_length=20)
    ] = Field(default_factory=dict, description="Feature table -> vector, in place of raw content.")


class RankBody(Asked):
    """Rank given candidates, and items that nobody has seen yet, by their content."""

    candidates: Annotated[list[ItemId], Field(max_length=MAX_CANDIDATES)] = Field(default_factory=list)
    items: Annotated[list[ItemBody], Field(max_length=MAX_NEW)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _something(self):
        if not self.candidates and not self.items:
            raise ValueError("candidates, items, or both")
        return self


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
    mmr: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Weight of relevance against likeness to what stands above; 1 changes nothing.",
    )
    category_cap: int | None = Field(None, ge=1, description="Most items of any one category.")
    explore: int = Field(0, ge=0, le=MAX_K, description="Last places given to items drawn evenly, marked so.")


class RankBatch(Body):
    """Several at once."""

    requests: Annotated[list[RankBody], Field(min_length=1, max_length=MAX_BATCH)]


class RecommendBatch(Body):
    """Several at once."""

    requests: Annotated[list[RecommendBody], Field(min_length=1, max_length=MAX_BATCH)]


class SimilarBody(Body):
    """Items like this one: of the catalogue, or described by its content."""

    item_id: ItemId | None = None
    item: ItemBody | None = None
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 10

    @model_validator(mode="after")
    def _one(self):
        if (self.item_id is None) == (self.item is None):
            raise ValueError("item_id or item, one of them")
        return self


class ItemsBody(Body):
    """Items to add or replace."""

    items: Annotated[list[ItemBody], Field(min_length=1, max_length=MAX_NEW)]


class EventBody(Body):
    """Something a user did. The same event_id is kept once."""

    event_id: Text
    user_id: ItemId
    item_id: ItemId
    timestamp: Seconds | None = Field(None, description="UTC seconds; the server's clock where absent.")


class EventsBody(Body):
    """Several events: all of them are kept, or none."""

    events: Annotated[list[EventBody], Field(min_length=1, max_length=1_000)]


class ModelInfo(BaseModel):
    """Which model answered, and as which variant of a comparison of several."""

    name: str
    bundle_id: str
    package_version: str
    variant: str = "main"


class Found(BaseModel):
    """Where an item came from: a generator, at which place of its list, with which score."""

    generator: str
    rank: int | None
    score: float | None


class Item(BaseModel):
    """An item as people see it. image: where its picture is had."""

    item_id: int | str
    title: str | None = None
    category: list[str] | None = None
    image: str | None = None


class Line(Item):
    """One ranked item. score: null where nothing here can score it. contributions: feature -> what it adds."""

    score: float | None
    sources: list[Found] = Field(default_factory=list)
    contributions: dict[str, float] | None = None


class Answer(BaseModel):
    """A ranked list, best first."""

    request_id: str
    model: ModelInfo
    items: list[Line]
    fallback: Literal["popular", "content"] | None = Field(
        None,
        description="popular: nothing was known of the user. content: only the new items' content was used.",
    )
    unknown_items: list[int | str] = Field(description="Ids outside the catalogue; they are not ranked.")
    missing: dict[str, list[str]] = Field(description="New item -> feature tables that it has nothing for.")
    history_length: int
    timings_ms: dict[str, float]


class Answers(BaseModel):
    """One answer a request, in order."""

    answers: list[Answer]


class EventAnswer(BaseModel):
    """kept is false where this event_id was known already."""

    kept: bool


class EventsAnswer(BaseModel):
    """kept, in the order of the events."""

    kept: list[bool]


class ItemsAnswer(BaseModel):
    """added: how many. missing: item -> feature tables that it has nothing for."""

    added: int
    missing: dict[str, list[str]]


class Removed(BaseModel):
    """How many items, or events of a user, were taken out."""

    removed: int


class Items(BaseModel):
    """Items of the catalogue."""

    items: list[Item]


class UserLine(BaseModel):
    """A user and how many events the bundle has of them."""

    user_id: int | str
    events: int


class Users(BaseModel):
    """Users of the bundle."""

    users: list[UserLine]


class User(BaseModel):
    """A user's history, oldest first, live events included."""

    user_id: int | str
    history: list[Item]


class ModelFacts(ModelInfo):
    """What is served. modalities: feature tables; encoders: what reads raw content of each (none = send vectors)."""

    widths: list[int]
    id_type: dict[str, str]
    items: int
    users: int
    generators: list[str]
    ranker: bool
    modalities: list[str]
    encoders: dict[str, str]


class Models(BaseModel):
    """Everything that answers requests."""

    models: list[ModelFacts]


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
