"""`python -m phitui.testing.conformance [NAME ...]`: the forward passes as a table. Exit code 1 if one is wrong."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from phitui.testing.conformance.building import NotHere, build
from phitui.testing.conformance.cases import CASES
from phitui.testing.conformance.comparing import compare
from phitui.testing.conformance.native import Llama, NativeError


def main(names: list[str]) -> int:
    """Run the cases of these names, or all."""
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.stderr.write(f"no case {unknown[0]!r}; there are: {', '.join(CASES)}\n")
        return 2
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, Llama() as llama:
        for name in names or CASES:
            case, model = CASES[name], Path(folder) / f"{name}.gguf"
            checkpoint = case.write(Path(folder) / name)
            try:
                found = compare(checkpoint, build(checkpoint, model, case.dtype, case.tokenizer), case, llama)
                ok, text = found.ok, str(found)
            except (NativeError, NotHere) as error:
                ok, text = False, str(error)
            wrong += not ok
            sys.stdout.write(f"{'ok   ' if ok else 'WRONG'} {name:26} {text}\n")
            sys.stdout.flush()
            model.unlink(missing_ok=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
