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
"""

from __future__ import annotations

from phitui.testing.conformance.suite import Comparison, Conformance, compare

__all__ = ["Comparison", "Conformance", "compare"]
