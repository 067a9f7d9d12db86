"""The gRPC front of ``tests.fake_server``."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.fake_script import Asked, Refusal, Script, index


class _Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, script: Script) -> None:
        self.script = script

    def enter(self, context: Any) -> dict[str, str]:
        headers = dict(context.invocation_metadata())
        try:
            self.script.enter(headers)
        except Refusal as refusal:
            context.abort(getattr(grpc.StatusCode, refusal.status), str(refusal))
        return headers

    def asked(self, request: Any, context: Any) -> Asked:
        headers = self.enter(context)
        (tensor,) = request.inputs
        region = ""
        if "shared_memory_region" in tensor.parameters:
            region = tensor.parameters["shared_memory_region"].string_param
            size = tensor.parameters["shared_memory_byte_size"].int64_param
            raw = self.script.memory(region, size)
        else:
            (raw,) = request.raw_input_contents
        assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("input", "BYTES", [1, 1])
        assert int.from_bytes(raw[:4], "little") == len(raw) - 4
        parameters = {
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in request.parameters.items()
        }
        timeout = parameters.pop("timeout", 0)
        return Asked(
            request.model_name,
            request.model_version,
            raw[4:],
            request.id,
            timeout,
            parameters,
            headers,
            region,
        )

    def ModelInfer(self, request: Any, context: Any) -> Any:
        try:
            outputs = self.script.infer(self.asked(request, context))
        except Refusal as refusal:
            context.abort(getattr(grpc.StatusCode, refusal.status), str(refusal))
        return self.response(outputs)

    def ModelStreamInfer(self, requests: Any, context: Any) -> Any:
        for request in requests:
            try:
                for outputs in self.script.stream(self.asked(request, context)):
                    if not context.is_active():
                        return
                    yield service_pb2.ModelStreamInferResponse(
                        infer_response=self.response(outputs)
                    )
            except Refusal as refusal:
                if refusal.status == "UNAVAILABLE":
                    context.abort(grpc.StatusCode.UNAVAILABLE, str(refusal))
                yield service_pb2.ModelStreamInferResponse(error_message=str(refusal))

    def response(self, outputs: dict[str, Any]) -> Any:
        response = service_pb2.ModelInferResponse(model_name="recognize", model_version="1")
        for name, value in outputs.items():
            entry = response.outputs.add(name=name)
            if isinstance(value, str):
                entry.datatype = "BYTES"
                entry.shape.extend([1, 1])
                text = value.encode("utf-8")
                response.raw_output_contents.append(len(text).to_bytes(4, "little") + text)
            else:
                array = np.array(value, np.float32)
                entry.datatype = "FP32"
                entry.shape.extend([1, *(array.shape or (1,))])
                response.raw_output_contents.append(array.tobytes())
        return response

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        self.script.regions[request.name] = request.key
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        self.script.regions.pop(request.name)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        response = service_pb2.ModelMetadataResponse(name=request.name, platform="python")
        response.inputs.add(name="input", datatype="BYTES", shape=[-1, 1])
        response.outputs.add(name="latex", datatype="BYTES", shape=[-1, 1])
        return response

    def ServerLive(self, request: Any, context: Any) -> Any:
        self.enter(context)
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self.script.ready)

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        response = service_pb2.RepositoryIndexResponse()
        for entry in index(self.script):
            response.models.add(**entry)
        return response


@contextmanager
def grpc_server(script: Script, port: int = 0) -> Iterator[str]:
    """A gRPC server; gives ``HOST:PORT``."""
    server = grpc.server(ThreadPoolExecutor(32))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Grpc(script), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
