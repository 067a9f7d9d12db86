"""The served models ``recognize`` and ``recognize_stream``: from bytes to LaTeX.

Both are this code: a model that answers several times loses the unary end points, hence two of
them. They preprocess, call ``encoder`` and ``decode``, and watch over the request meanwhile::

    model.py     the life cycle
    front.py     who waits, who is served, who is gone: admission, priorities, deadlines
    job.py       one request: what it asks for, and its answers
    road.py      one request's way: preprocess -> encoder -> decode
    cache.py     answers that were given before
    request_log.py  a line in the log for every request

An ensemble would do without code, but when its client goes away Triton does not tell its members,
and a formula that nobody waits for would be decoded to its end.
"""
