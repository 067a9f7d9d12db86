"""Ids <-> tokens. No global instance: a vocabulary travels in the bundle it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from hmer.errors import VocabularyMismatch

PAD_ID, SOS_ID, EOS_ID = 0, 1, 2
SPECIAL = ("<pad>", "<sos>", "<eos>")


class UnknownToken(KeyError):
    """A token that the vocabulary does not hold; ``token`` names it."""

    def __init__(self, token: str) -> None:
        super().__init__(token)
        self.token = token

    def __str__(self) -> str:
        return f"The vocabulary has no token {self.token!r}."


class Vocabulary:
    """An immutable list of tokens; ids 0, 1, 2 are ``<pad>``, ``<sos>``, ``<eos>``."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """``tokens`` without the special ones, in the order of their ids from 3 on."""
        self.tokens: tuple[str, ...] = SPECIAL + tuple(tokens)
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self._ids) != len(self.tokens):
            raise ValueError("A token occurs twice in the vocabulary.")

    @classmethod
    def from_labels(cls, labels: Iterable[Sequence[str]]) -> Vocabulary:
        """The vocabulary of tokenised ``labels``, sorted, so that the order of labels is moot."""
        return cls(sorted({token for label in labels for token in label}))

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Ids of ``tokens``, without ``<sos>`` and ``<eos>``. Raises ``UnknownToken``."""
        try:
            return [self._ids[token] for token in tokens]
        except KeyError as error:
            raise UnknownToken(str(error.args[0])) from None

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Tokens of ``ids`` up to the first ``<eos>``, without special tokens."""
        result = []
        for index in ids:
            if index == EOS_ID:
                break
            if index >= len(SPECIAL):
                result.append(self.tokens[index])
        return result

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the tokens, one a line: equal for equal ids of equal tokens."""
        return hashlib.sha256("\n".join(self.tokens).encode("utf-8")).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """For ``bundle.json``: the tokens (without the special ones) and the fingerprint."""
        return {"tokens": list(self.tokens[len(SPECIAL) :]), "sha256": self.fingerprint}

    @classmethod
    def from_dict(cls, values: dict[str, object], where: str = "the bundle") -> Vocabulary:
        """Rebuild ``to_dict``'s vocabulary. Raises ``VocabularyMismatch`` on another hash."""
        tokens = values.get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
            raise VocabularyMismatch(f"The vocabulary in {where} is not a list of tokens.")
        vocabulary = cls(tokens)
        if vocabulary.fingerprint != values.get("sha256"):
            raise VocabularyMismatch(
                f"The vocabulary in {where} has the hash {vocabulary.fingerprint[:12]}, but "
                f"{str(values.get('sha256'))[:12]} is recorded: its tokens were changed after "
                "the model was trained. Restore the file, or export the checkpoint again."
            )
        return vocabulary
