"""``hmer-client pad``: a local page to draw formulas on, and a REST end point beside it.

A small ASGI application in front of a recogniser: a server's, or one in this process. It needs
the extra ``pad`` (starlette, uvicorn, latex2mathml).
"""
