"""The served model ``decoder_step`` over a CPU runtime."""
