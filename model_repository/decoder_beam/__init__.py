"""The served model ``decoder_beam`` over a CPU runtime."""
