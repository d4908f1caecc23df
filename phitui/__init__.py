"""phitui: a Phi model from checkpoint to chat, in one terminal. Importing this package costs nothing."""

__version__ = "0.1.0"
