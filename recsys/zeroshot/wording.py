"""How a prompt speaks of the things of a domain."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """one, many: names of the things. did, do: what people do with them: "I have {did} ...", "will I {do} it"."""

    one: str
    many: str
    did: str
    do: str


DOMAINS = {
    "movies": Wording("movie", "movies", "watched", "watch"),
    "books": Wording("book", "books", "read", "read"),
    "music": Wording("piece of music", "pieces of music", "listened to", "listen to"),
    "games": Wording("game", "games", "played", "play"),
    "news": Wording("news article", "news articles", "read", "read"),
    "art": Wording("work of art", "works of art", "looked at", "look at"),
    "fashion": Wording("item of clothing", "items of clothing", "bought", "buy"),
    "beauty": Wording("beauty product", "beauty products", "bought", "buy"),
    "sports": Wording("sports product", "sports products", "bought", "buy"),
    "food": Wording("dish", "dishes", "eaten", "eat"),
    "places": Wording("place", "places", "visited", "visit"),
    "general": Wording("item", "items", "chosen", "choose"),
}
"""Domain -> its words. "general" says nothing of what the things are."""
