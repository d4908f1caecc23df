"""A recipe to begin with."""

from __future__ import annotations

from phitui.actions.context import Context


def example(ctx: Context) -> str:
    """A commented recipe with every section, for the plugins that are here."""
    target = next((exporter.name for exporter in ctx.registry.exporters), "TARGET")
    return _TEMPLATE.replace("TARGET", target)


_TEMPLATE = """\
# A recipe: carried out with `phitui run FILE.toml`, in this order. Every section may be left out.
# Paths are relative to this file. Running it again skips what is done and unchanged.
format = 1

# Download a checkpoint. With a commit as revision, everybody gets the same files.
[get]
repo = "microsoft/Phi-4-mini-instruct"
# revision = "main"
# to = "Phi-4-mini-instruct"        # default: phitui's models folder

# Collect an importance matrix; low-bit schemes need one, others gain by it.
[imatrix]
# text = "calibration.txt"          # default: a text that comes with phitui
out = "phi.imatrix.gguf"
chunks = 40

# Convert and quantize in one pass.
[build]
# source = "Phi-4-mini-instruct"    # a directory, a GGUF or a name in the library; default: what [get] downloaded
scheme = "Q4_K_M"                   # phitui schemes lists them
out = "phi-4-mini.Q4_K_M.gguf"
# converter.name = "My Phi"         # options of phitui build, grouped by who takes them
# quantizer.override = ["ffn_down=Q6_K"]

# Measure it, best against the file in its own precision.
[evaluate]
# reference = "phi-4-mini.BF16.gguf"
# text = "text.txt"
chunks = 16
# options.tolerance = 0.02          # options of phitui eval

# Plan the layers; with must_fit the recipe fails where it does not fit.
[plan]
context = 8192
layers = "auto"
# devices = ["RTX 4070=12GiB"]      # default: this machine
must_fit = true

# Write the files for another program.
[export]
to = "TARGET"
out = "TARGET"
# options.name = "my-phi"             # options of phitui export
"""
