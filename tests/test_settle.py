"""What a server holds is left out of collections, and freed all the same once a swap has let it go."""

import gc
import weakref

from recsys.serving.run import settle


class Bundle:
    """Holds itself, as an engine does through its callbacks."""

    def __init__(self):
        self.changed = self.close

    def close(self) -> None: ...


def test_what_was_let_go_is_freed_at_the_next_swap():
    try:
        held = Bundle()
        seen = weakref.ref(held)
        settle()
        assert gc.get_freeze_count() > 0
        del held
        gc.collect()
        assert seen() is not None  # no collection between requests looks at it
        settle()
        assert seen() is None
    finally:
        gc.unfreeze()
