"""What phitui talks about: frozen dataclasses, protocols, pure functions. Standard library only, no input or output."""
