"""What a store of live state should hold, in dicts, and random operations on it."""

from dataclasses import dataclass, field

from hypothesis import strategies as st

from recsys.serving.state import Event, StateStore

USERS, VERSIONS, ITEMS = ("1", "2", '"1"'), ("v", "w"), ("5", '"5"', "6")

EVENT = st.builds(
    Event,
    event_id=st.text("abc\x00ä'\"", min_size=1, max_size=2),
    user_id=st.sampled_from(USERS),
    item_id=st.integers(0, 5).map(str),
    time=st.integers(0, 3),
)
CONTENT = st.sampled_from([b"", b"+", b"-", b"a:b", b"\x00\xff"])
OPERATION = st.one_of(
    st.tuples(st.just("add"), st.lists(EVENT, max_size=5)),
    st.tuples(st.just("add"), st.lists(EVENT, max_size=5)),
    st.tuples(st.just("forget"), st.sampled_from(USERS), st.integers(0, 3)),
    st.tuples(
        st.just("save"), st.sampled_from(VERSIONS), st.sampled_from(USERS), st.booleans(), CONTENT
    ),
    st.tuples(st.just("drop"), st.sets(st.sampled_from(VERSIONS)).map(sorted)),
    st.tuples(st.just("put"), st.dictionaries(st.sampled_from(ITEMS), CONTENT)),
    st.tuples(st.just("remove"), st.lists(st.sampled_from(ITEMS), max_size=3)),
)  # fmt: skip


@dataclass
class Model:
    """Applies each operation to a store and to itself, and compares what the two answer."""

    kept: list[Event] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    gone: dict[str, int] = field(default_factory=dict)
    states: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    items: dict[str, bytes | None] = field(default_factory=dict)

    def apply(self, store: StateStore, operation: tuple) -> None:
        name, *values = operation
        getattr(self, name)(store, *values)

    def add(self, store: StateStore, events: list[Event]) -> None:
        expected = []
        for event in events:
            new = event.event_id not in self.ids and event.time > self.gone.get(event.user_id, -1)
            if new:
                self.kept.append(event)
                self.ids.add(event.event_id)
            expected.append(new)
        assert store.add(events) == expected

    def forget(self, store: StateStore, user: str, at: int) -> None:
        own = [event for event in self.kept if event.user_id == user]
        self.kept = [event for event in self.kept if event.user_id != user]
        self.states = {key: state for key, state in self.states.items() if key[1] != user}
        self.gone[user] = max(at, self.gone.get(user, at))
        assert store.forget(user, at) == len(own)

    def save(self, store: StateStore, version: str, user: str, whole: bool, state: bytes) -> None:
        """A state over all of the user's events, or over none."""
        tail = store.tail(user, 0)
        after = tail[-1][0] if whole and tail else 0
        if after or user not in self.gone:
            self.states[version, user] = (after, state)
        store.save_state(version, user, after, state)

    def drop(self, store: StateStore, keep: list[str]) -> None:
        left = {key: state for key, state in self.states.items() if key[0] in keep}
        assert store.drop_states(keep) == len(self.states) - len(left)
        self.states = left

    def put(self, store: StateStore, records: dict[str, bytes]) -> None:
        store.put_items(records)
        for item, content in records.items():
            self._change(item, content)

    def remove(self, store: StateStore, items: list[str]) -> None:
        store.remove_items(items)
        for item in items:
            self._change(item, None)

    def _change(self, item: str, content: bytes | None) -> None:
        if item not in self.items or self.items[item] != content:
            self.items.pop(item, None)  # the newest change stands last
            self.items[item] = content

    def check(self, store: StateStore) -> None:
        for user in USERS:
            own = [event for event in self.kept if event.user_id == user]
            by_time = sorted(own, key=lambda event: (event.time, event.event_id.encode()))
            assert store.events(user) == by_time
            tail = store.tail(user, 0)
            assert [event for _, event in tail] == own
            ascending([number for number, _ in tail])
            for place, (number, _) in enumerate(tail):
                assert store.tail(user, number) == tail[place + 1 :]
            assert store.forgotten(user) == self.gone.get(user)
            for version in VERSIONS:
                assert store.load_state(version, user) == self.states.get((version, user))
        everybody = store.recent(0)
        assert [event for _, event in everybody] == self.kept
        ascending([number for number, _ in everybody])
        for place, (number, _) in enumerate(everybody):
            assert store.recent(number) == everybody[place + 1 :]
        changes = store.items_after(0)
        assert [(item, content) for _, item, content in changes] == list(self.items.items())
        ascending([number for number, _, _ in changes])
        for place, (number, _, _) in enumerate(changes):
            assert store.items_after(number) == changes[place + 1 :]


def ascending(numbers: list[int]) -> None:
    assert all(number > 0 for number in numbers) and numbers == sorted(set(numbers))
