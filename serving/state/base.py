"""What every store of live state does. Worker processes share a store; threads share its object."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One thing a user did. Ids are JSON texts, so that 42 and "42" stay apart; time is UTC seconds."""

    event_id: str
    user_id: str
    item_id: str
    time: int


class StateStore(ABC):
    """Events, forgotten users, recurrent states and changed items, kept by ids and not by index, so that they
    outlive a change of bundle.

    Sequence numbers ascend in the order of keeping, are never given twice, and may have gaps. Every method raises
    ServingError where the store cannot be reached, read or written; the same object works again once it can.
    """

    @abstractmethod
    def add(self, events: Sequence[Event]) -> list[bool]:
        """Keep the events: all of them or, where this raises, none. Durable when this returns.

        False for an event whose event_id was kept before, in this call too, even where that event has been
        forgotten since; and for one not later than the moment at which its user was forgotten.
        """

    @abstractmethod
    def events(self, user_id: str) -> list[Event]:
        """A user's events in time order; equal times in the order of their event ids."""

    @abstractmethod
    def tail(self, user_id: str, after: int) -> list[tuple[int, Event]]:
        """(sequence number, event) of a user's events kept after that sequence number, in the order of keeping;
        0 is from the start."""

    @abstractmethod
    def recent(self, after: int) -> list[tuple[int, Event]]:
        """`tail` of all users together: for counts."""

    @abstractmethod
    def forget(self, user_id: str, at: int) -> int:
        """Delete the user's events and recurrent states; the number of events deleted. Durable when this returns.

        Remembers `at` (UTC seconds), or an earlier call's later moment. Of the events their bare event ids stay,
        so that one sent again is not kept again.
        """

    @abstractmethod
    def forgotten(self, user_id: str) -> int | None:
        """When the user was forgotten, in UTC seconds; None where never. History up to then does not count."""

    @abstractmethod
    def save_state(self, version: str, user_id: str, after: int, state: bytes) -> None:
        """Keep a user's recurrent state, folded up to the sequence number `after`, under a model version.

        A cache: it may be lost. A state that holds no event kept since the user was forgotten is not taken, as it
        may hold those from before.
        """

    @abstractmethod
    def load_state(self, version: str, user_id: str) -> tuple[int, bytes] | None:
        """(after, state) as saved last under that version, or None."""

    @abstractmethod
    def drop_states(self, keep: Sequence[str]) -> int:
        """Delete the states of all versions that are not named; the number of states deleted."""

    @abstractmethod
    def put_items(self, records: Mapping[str, bytes]) -> None:
        """Add or replace items: item id to content. Durable when this returns.

        An item removed before is back; one with this very content is left as it is.
        """

    @abstractmethod
    def remove_items(self, item_ids: Sequence[str]) -> None:
        """Remove items, those of the catalogue too. Durable when this returns; a repeat changes nothing."""

    @abstractmethod
    def items_after(self, after: int) -> list[tuple[int, str, bytes | None]]:
        """(sequence number, item id, content or None where removed) of the items changed after that number, in the
        order of change; of each item the newest change only."""

    @abstractmethod
    def ping(self) -> None:
        """Make sure that the store can be reached and takes writes."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections. What was acknowledged is kept."""
