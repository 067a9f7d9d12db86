"""The OpenAPI description of the REST end point, as one document."""

from __future__ import annotations

from typing import Any

from client.inputs import MAX_BYTES
from hmer import __version__
from hmer.decode_types import MAX_LENGTH_PENALTY

RECOGNIZE_PATH, HEALTH_PATH = "/v1/recognize", "/v1/health"

MAX_BEAM, MAX_TOKENS = 16, 1024  # that REST lets a request ask for
# The header that names a request, there and back; so long at most, else a new name is made.
REQUEST_ID, MAX_ID = "X-Request-Id", 128

PARAMETERS: dict[str, dict[str, Any]] = {
    "beam": {
        "description": "Hypotheses that the search follows; 1 is greedy decoding.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_BEAM, "default": 1},
    },
    "n_best": {
        "description": "Answers to give, best first; at most the beam's width.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_BEAM, "default": 1},
    },
    "length_penalty": {
        "description": "Alpha of beam search's normalisation by length.",
        "schema": {"type": "number", "minimum": 0, "maximum": MAX_LENGTH_PENALTY},
    },
    "max_tokens": {
        "description": "The longest answer, in tokens.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TOKENS},
    },
    "attention": {
        "description": "Add where the network looked for each token.",
        "schema": {"type": "boolean", "default": False},
    },
}
"""The query parameters of ``POST /v1/recognize``; requests are checked against them."""

_POINT = {"type": "array", "items": {"type": "number"}, "minItems": 2}
_STROKES = {
    "type": "array",
    "minItems": 1,
    "description": "Strokes in pen order: points [x, y], y down, in any unit.",
    "items": {"type": "array", "items": _POINT},
}
_FORMULA = {
    "latex": {"type": "string"},
    "mathml": {
        "type": ["string", "null"],
        "description": "Null for an answer that MathML cannot say.",
    },
    "tokens": {"type": "array", "items": {"type": "string"}},
    "score": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "description": "The network's own probability of exactly these tokens.",
    },
}
_SCHEMAS: dict[str, Any] = {
    "Ink": {
        "oneOf": [
            _STROKES,
            {"type": "object", "required": ["strokes"], "properties": {"strokes": _STROKES}},
        ]
    },
    "Alternative": {"type": "object", "required": list(_FORMULA), "properties": _FORMULA},
    "Answer": {
        "type": "object",
        "required": [*_FORMULA, "confidence", "alternatives", "timings"],
        "properties": {
            **_FORMULA,
            "confidence": {
                "type": ["number", "null"],
                "minimum": 0,
                "maximum": 1,
                "description": "The calibrated probability that the answer is right, if known.",
            },
            "alternatives": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/Alternative"},
            },
            "timings": {
                "type": "object",
                "description": "Milliseconds by stage.",
                "additionalProperties": {"type": "number"},
            },
            "request_id": {"type": "string", "description": "The request's name."},
            "attention": {
                "type": "object",
                "required": ["box", "maps"],
                "properties": {
                    "box": {
                        "type": "array",
                        "items": {"type": "number"},
                        "minItems": 4,
                        "maxItems": 4,
                        "description": "Left, top, right, bottom of what the maps cover: pixels "
                        "of the picture as it is to be looked at, or the strokes' unit.",
                    },
                    "maps": {
                        "type": "array",
                        "description": "maps[token][row][column], each of sum 1.",
                        "items": {
                            "type": "array",
                            "items": {"type": "array", "items": {"type": "number"}},
                        },
                    },
                },
            },
        },
    },
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string", "description": "Stable; for programs."},
                    "message": {"type": "string", "description": "A sentence; for people."},
                },
            }
        },
    },
    "Health": {
        "type": "object",
        "required": ["ready", "detail"],
        "properties": {"ready": {"type": "boolean"}, "detail": {"type": "string"}},
    },
}
_NAMED = {
    REQUEST_ID: {
        "description": "The request's name in the server's log.",
        "schema": {"type": "string"},
    }
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ERRORS = {
    "400": "The input or a parameter is at fault.",
    "413": "The input is too large.",
    "500": "The recogniser failed.",
    "503": "No server answers, or it is too busy.",
    "504": "The server did not finish in time.",
}


def _of(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def description() -> dict[str, Any]:
    """The document that ``/openapi.json`` serves (OpenAPI 3.1)."""
    recognize = {
        "operationId": "recognize",
        "summary": "The formula in a picture or in ink",
        "parameters": [
            {"name": name, "in": "query", "required": False, **about}
            for name, about in PARAMETERS.items()
        ]
        + [
            {
                "name": REQUEST_ID,
                "in": "header",
                "required": False,
                "description": "A name for the request in the server's log; printable ASCII "
                "without spaces. Another one is replaced by a random name.",
                "schema": {"type": "string"},
            }
        ],
        "requestBody": {
            "required": True,
            "description": "A PNG, JPEG, WebP, TIFF or BMP picture, InkML, or JSON strokes; at "
            f"most {MAX_BYTES // 2**20} MiB. The content decides, not its type.",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Ink"}},
                "application/octet-stream": _BINARY,
                "image/*": _BINARY,
                "application/inkml+xml": {"schema": {"type": "string"}},
            },
        },
        "responses": {
            "200": {"description": "The answer.", "headers": _NAMED, "content": _of("Answer")},
            **{
                status: {"description": text, "headers": _NAMED, "content": _of("Error")}
                for status, text in _ERRORS.items()
            },
        },
    }
    health = {
        "operationId": "health",
        "summary": "Whether requests are answered",
        "responses": {
            "200": {"description": "They are.", "content": _of("Health")},
            "503": {"description": "They are not.", "content": _of("Health")},
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hmer",
            "version": __version__,
            "summary": "Handwritten formulas in, LaTeX out.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {RECOGNIZE_PATH: {"post": recognize}, HEALTH_PATH: {"get": health}},
        "components": {"schemas": _SCHEMAS},
    }
