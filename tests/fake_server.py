"""A server in this process that answers as Triton 2.51 was seen to, over gRPC and HTTP.

Both fronts share one ``Script``: what is asked of it, and what it says. Statuses and words of
the failures are those of the real server.
"""

from __future__ import annotations

from tests.fake_grpc import grpc_server as grpc_server
from tests.fake_http import http_server as http_server
from tests.fake_script import Asked as Asked
from tests.fake_script import Refusal as Refusal
from tests.fake_script import Script as Script

SERVERS = {"grpc": grpc_server, "http": http_server}
