"""Does Phi still work? A suite for converters, and for new releases of llama.cpp.

    from phitui.testing.conformance import Conformance

    class TestMine(Conformance):          # 75 checks, some 20 seconds on one core
        def build(self, checkpoint, out, scheme="AUTO", tokenizer="spm", **options):
            ...                           # write `out` with your converter; without this method: the installed one

or, without pytest, `python -m phitui.testing.conformance` for a table of the forward passes.

Tiny random checkpoints of every family (phitui.testing.checkpoints) become GGUF files, and then:
- keys, names, shapes, types and bytes are those of llama.cpp's own convert_hf_to_gguf.py (golden.py),
- text becomes the tokens that the checkpoint's own tokenizer makes of it (tokens.py),
- logits of llama.cpp, in a child process, are those of the checkpoint computed in plain numpy (phitui.testing.forward),
  relative error <= 1e-2 for BF16, 1e-5 for F32 (cases.py). A llama.cpp that breaks Phi turns this red.

What llama.cpp (0c1e57098) computes otherwise than the models' own code, so that the cases stay clear of it:
- no sliding window: from the 2,048th token on, Phi-3-mini-4k attends to more than it was made for;
- mixtures of experts: RMS norms in place of layer norms, and the weights of a token's two experts sum to 1. On random
  weights logits are 67 % off; the cases are mixtures on which both ways agree, or accept either way;
- their LongRoPE: cos and sin are scaled by a formula (1.190), where Phi-3.5-MoE's config.json says 1.243.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phitui.testing.conformance.comparing import Comparison, compare

if TYPE_CHECKING:
    from phitui.testing.conformance.suite import Conformance

__all__ = ["Comparison", "Conformance", "compare"]


def __getattr__(name: str) -> Any:
    """The class for pytest is there where pytest is."""
    if name != "Conformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    pytest.register_assert_rewrite(f"{__name__}.suite")
    from phitui.testing.conformance.suite import Conformance

    return Conformance
