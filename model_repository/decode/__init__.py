"""The served model ``decode``: the life cycle in ``model``, the adapter in ``adapter``.

The loop itself is ``hmer.decode``, which knows no Triton.
"""
