"""``python -m training``: the command ``hmer-train`` without an installation."""

from training.cli import main

main(prog_name="hmer-train")
