"""From the bytes of tokens to text that may be shown: whole characters only, and nothing of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable


class Pieces:
    """Assembles an answer. Feed it the bytes of each token; it returns the text that is certain by now.

    Bytes of a character split over tokens wait for the rest; text that may be the start of a stop text waits until
    it is clear. Bytes that are no UTF-8 become U+FFFD. After `stopped` is true, the answer is over.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stop for stop in dict.fromkeys(stops) if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        """The text that became certain with these bytes."""
        return self._take(self._decoder.decode(data))

    def finish(self) -> str:
        """What was still held back, once the model has ended its answer."""
        text = self._take(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return "" if self.stopped else text

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        if not self._stops:
            return text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = self._partial(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _partial(self, text: str) -> int:
        """The length of the longest end of `text` with which a stop text begins."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
