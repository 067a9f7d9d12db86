"""What the product is compared with; none of it is served otherwise.

::

    eager_loop.py   the plain PyTorch loop that one writes first
    eager.py        that loop as a Triton model, one request at a time
    naive.py        a BLS model that calls decoder_step once a token, one request at a time
    batched.py      a decoding loop over a dynamic batch, which waits for its longest formula

All stop where the product stops (<eos>, the longest answer, a loop), so that all do the same work.
"""
