"""The kit for plugin authors (and for phitui's own tests).

`contracts` has a class of tests for each kind of offer, to subclass with a fixture `offer`; `checkpoints` makes tiny
random Phi checkpoints with their tokenizers; `conformance` says whether what becomes of them is right, down to the
logits; `engine` and `scripted` are models that say what they are told to.
plugins/README.md shows their use.
"""
