"""`python -m hybrid`, the same as the `hybrid` command."""

from hybrid.cli import main

main(prog_name="hybrid")
