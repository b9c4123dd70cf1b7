"""The prompt: token ids of one item, and where its vectors are read.

The language model's vocabulary is left alone: places of a picture and the new token that stands for "the visual note's
word" get ids behind its last one, whose rows the model of this package holds itself. A text that spells such a token
out is plain text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.config import Config

VERSION = 1


class Prompt(Config):
    """English wording of the released structure, which is Chinese: a JSON-like note, then a request for one word."""

    visual: str = '{"image": "'
    """Before the picture, in a note of its own."""
    both: str = '", "note": "'
    """Between picture and text, in one note."""
    textual: str = '{"note": "'
    """Before the text, in a note of its own."""
    ending: str = '"}, compress into one word: "'
    """After every note: the vector is read at its last token, which would be followed by the word."""
    between: str = '".\n'
    """After the visual note's word, before the textual note."""


@dataclass(frozen=True)
class Notes:
    """Prompts of R items, padded on the right. ids_RL; mask_RL: False on padding; visual_R and joint_R: where the
    visual and the multimodal vector are read (visual_R equals joint_R where the prompt has one note)."""

    ids_RL: np.ndarray
    mask_RL: np.ndarray
    visual_R: np.ndarray
    joint_R: np.ndarray


class Writer:
    """Writes prompts with one tokenizer. Ids of the picture's places are `picture`, that of the word `word`.

    micl: two notes. sees: the picture stands in the prompt at all.
    """

    def __init__(
        self,
        prompt: Prompt,
        tokenizer: Any,
        vocabulary: int,
        *,
        micl: bool,
        sees: bool,
        places: int,
        longest: int,
    ):
        self.picture, self.word = vocabulary, vocabulary + 1
        self._tokenizer, self._longest = tokenizer, longest
        start = tokenizer("a")["input_ids"][:1]
        start = start if start == [tokenizer.bos_token_id] else []
        seen = [self.picture] * places
        if micl:
            visual = [*start, *self._ids(prompt.visual), *seen, *self._ids(prompt.ending)]
            self._read_visual: int | None = len(visual) - 1
            self._head = [*visual, self.word, *self._ids(prompt.between), *self._ids(prompt.textual)]
        else:
            opening = (
                [*self._ids(prompt.visual), *seen, *self._ids(prompt.both)]
                if sees
                else self._ids(prompt.textual)
            )
            self._read_visual, self._head = None, [*start, *opening]
        self._tail = self._ids(prompt.ending)

    def texts(self, texts: Sequence[str | None]) -> list[list[int]]:
        """Token ids of each text, cut to the longest that is allowed; none where there is no text."""
        found = self._tokenizer([text or "" for text in texts], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        return [ids[: self._longest] for ids in found]

    def notes(self, texts: Sequence[Sequence[int]]) -> Notes:
        """Prompts around these token ids."""
        rows = [[*self._head, *ids, *self._tail] for ids in texts]
        lengths_R = np.array([len(row) for row in rows], np.int64)
        ids_RL = np.zeros((len(rows), int(lengths_R.max(initial=1))), np.int64)
        for row, ids in enumerate(rows):
            ids_RL[row, : len(ids)] = ids
        mask_RL = np.arange(ids_RL.shape[1]) < lengths_R[:, None]
        joint_R = lengths_R - 1
        visual_R = joint_R if self._read_visual is None else np.full_like(joint_R, self._read_visual)
        return Notes(ids_RL, mask_RL, visual_R, joint_R)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]
