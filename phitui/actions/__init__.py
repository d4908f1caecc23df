"""What a person can do, one module a verb. No terminal in here: the CLI and the TUI call nothing else."""
