"""What phitui talks about: frozen dataclasses, protocols and pure functions. Standard library only, no input or output."""
