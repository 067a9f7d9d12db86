"""The served model ``encoder`` over a CPU runtime."""
