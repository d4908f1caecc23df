"""The command line: thin commands over phitui.actions.

Exit codes are a contract: 0 done, 1 failed, 2 usage, 130 cancelled. With --json, stdout carries one JSON document and
nothing else; progress and notes go to stderr.
"""
