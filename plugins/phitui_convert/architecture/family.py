"""What the converter asks of a family of models."""

from __future__ import annotations

from typing import Protocol

from phitui.api import Checkpoint, SourceTensor, Value


class Model(Protocol):
    """The hyperparameters of a config.json, checked, as one of llama.cpp's architectures."""

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it: general.architecture."""

    @property
    def vocabulary(self) -> int:
        """Rows of the token embeddings; 0 for a file without a vocabulary."""

    @property
    def left_out(self) -> str:
        """What the checkpoint has beyond the text model ("vision"), empty if nothing is left out."""

    @property
    def caveat(self) -> str:
        """What llama.cpp is known to compute otherwise than the model's own code, as a sentence; empty if nothing."""

    def summary(self) -> str:
        """A few words for the verdict."""

    def metadata(self) -> dict[str, Value]:
        """The keys of the architecture, general.* and the tokenizer's own aside."""

    def tensors(self, checkpoint: Checkpoint) -> tuple[SourceTensor, ...]:
        """All tensors. Raises InvalidFile naming the first that is missing, of another shape, or unknown."""
