"""What a bundle's users left behind in its recurrent networks, read once where the bundle is written: a user's first
question then costs no reading of a long history.
"""

from collections.abc import Mapping

import numpy as np

from recsys.schema import Ragged
from recsys.serving.forms import Program, Sequence
from recsys.serving.network import Encoded

WORTH_KEEPING = 32
"""Events of a history that takes longer to read than its state takes to fetch."""
_STEPS = 8
"""Events after a kept state that are stepped through; with more of them the whole history is read anew, all at once."""


def stepping(programs: Mapping[str, Program]) -> dict[str, Sequence]:
    """Those that take one event at a time."""
    return {
        name: program for name, program in programs.items() if isinstance(program, Sequence) and program.steps
    }


def states_of(program: Sequence, histories: Ragged, last_U: np.ndarray, most: int) -> dict[str, np.ndarray]:
    """rows [S], states [S, bytes] of users with long histories, ascending; where they are more than `most`, of those
    whose last event (last_U) is newest."""
    rows = np.flatnonzero(histories.lengths >= WORTH_KEEPING)
    rows = np.sort(rows[np.argsort(-last_U[rows], kind="stable")[:most]])
    states = [
        np.frombuffer(program.network.read(histories[row]).to_bytes(), np.uint8) for row in rows.tolist()
    ]
    return {"rows": rows, "states": np.stack(states) if states else np.zeros((0, 0), np.uint8)}


class UserStates:
    """The states that a bundle came with."""

    def __init__(self, histories: Ragged, arrays: Mapping[str, Mapping[str, np.ndarray]]):
        """arrays: program -> what `states_of` gave."""
        self._histories, self._states = histories, {name: found["states"] for name, found in arrays.items()}
        self._places = {
            name: {row: place for place, row in enumerate(found["rows"].tolist())}
            for name, found in arrays.items()
        }

    def of(self, name: str, program: Sequence, row: int, items: np.ndarray) -> Encoded | None:
        """After `items`, where they are the bundle's own history and a few events more; None where they are not."""
        place = self._places.get(name, {}).get(row)
        if place is None:
            return None
        own = self._histories[row]
        more = items[len(own) :]
        if len(items) < len(own) or len(more) > _STEPS or not np.array_equal(items[: len(own)], own):
            return None
        state = program.network.restored(self._states[name][place].tobytes())
        for item in more:
            state = program.network.step(state, np.array([item]))
        return state
