"""Names, dtypes and dims of every model's tensors, written once.

Everything that touches a tensor (export, the repository's ``config.pbtxt``, the served
models, the client, the tests) takes its names from here. Dims leave out the batch; a
string is a dynamic axis, and equal strings are equal sizes within one request.

``recognize`` answers a request of up to ``hmer.serving.MAX_ROWS`` rows once. Its twin
``recognize_stream`` takes one row and the same parameters (``hmer.serving``), and answers several
times, over gRPC's ``ModelStreamInfer`` or HTTP's
``POST /v2/models/recognize_stream/generate_stream``::

    token, token_score, index [, attention, attention_box]      for every token, as it is decoded
    latex, tokens, score, confidence, alternatives              the last response, final

A response with ``latex`` is the last one; its outputs are those of ``recognize``. <eos> is no
token. A beam's tokens are known only at the end, and come at once right before the last response.
An error ends the stream in place of the last response. Over ``generate_stream`` every response is
one SSE event, ``data: {JSON}``, with the outputs by name, those of one element as plain values; the
request's JSON is ``{"input": TEXT, "encoding": "base64", "beam": 4, ...}``, its parameters beside
the input: a picture travels in base64, ink may travel as it is (without ``encoding``).

With the parameter ``attention`` an answer of ``recognize`` (of a request of one row) has the maps
of all its tokens, a response of ``recognize_stream`` that of its token.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTRACT_VERSION = 1

# The served models.
RECOGNIZE, RECOGNIZE_STREAM, PREPROCESS, ENCODER, DECODER_STEP, DECODER_BEAM, DECODE = (
    "recognize",
    "recognize_stream",
    "preprocess",
    "encoder",
    "decoder_step",
    "decoder_beam",
    "decode",
)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: ``dtype`` is a NumPy name, or ``bytes`` for variable-length strings."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A model's interface."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        """The input called ``name``; ``KeyError`` if there is none."""
        return {spec.name: spec for spec in self.inputs}[name]

    def output(self, name: str) -> TensorSpec:
        """The output called ``name``; ``KeyError`` if there is none."""
        return {spec.name: spec for spec in self.outputs}[name]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a trained network that appear in tensor dims."""

    features: int  # D, channels of a feature position
    attention: int  # A
    hidden: int  # U
    stride: int  # pixels between feature positions
    k: int = 1  # tokens a call of decoder_step
    beam: int = 0  # candidates a call of decoder_beam; 0: there is no such graph

    @property
    def state(self) -> int:
        """Length of the packed decoder state: hidden, cell, c'."""
        return 2 * self.hidden + self.features


# Encoded PNG, JPEG, WebP, TIFF or BMP; or ink: InkML, or JSON strokes. Found out by content.
INPUT = TensorSpec("input", "bytes", (1,))
# 255 is ink. Rows and columns beyond `size` are zero.
IMAGE = TensorSpec("image", "uint8", (1, "height", "width"))
# True height and width in pixels, multiples of the encoder's stride.
SIZE = TensorSpec("size", "int32", (2,))
# The same in feature positions.
FEATURE_SIZE = TensorSpec("feature_size", "int32", (2,))
LATEX = TensorSpec("latex", "bytes", (1,))
TOKENS = TensorSpec("tokens", "bytes", (1,))  # separated by single spaces
SCORE = TensorSpec("score", "float32", (1,))  # the sequence's probability, 0..1
# The probability, 0..1, that the answer is right (`hmer.calibration`); negative, as JSON has no
# NaN and Triton's HTTP end points would write a bare one, where the bundle has no
# calibration for the way the answer was searched for.
CONFIDENCE = TensorSpec("confidence", "float32", (1,))
UNKNOWN_CONFIDENCE = -1.0
# A JSON list of {"latex", "tokens", "score"}, best first, without the answer itself.
ALTERNATIVES = TensorSpec("alternatives", "bytes", (1,))
# Of recognize_stream: the next token of the answer, its probability (0..1), and its place in the
# answer, from 0.
TOKEN = TensorSpec("token", "bytes", (1,))
TOKEN_SCORE = TensorSpec("token_score", "float32", (1,))
INDEX = TensorSpec("index", "int32", (1,))
# Where the network looked for each token, only if asked for: weights over the feature positions,
# each map of sum 1.
ATTENTION = TensorSpec("attention", "float32", ("tokens", "feature_height", "feature_width"))
# What the maps cover: left, top, right, bottom in pixels of the picture (of ink: of its rendering),
# which may lie outside it.
ATTENTION_BOX = TensorSpec("attention_box", "float32", (4,))


def models(sizes: Sizes) -> dict[str, ModelSpec]:
    """The interface of every served model for a network of these ``sizes``.

    ``decoder_beam`` is among them if ``sizes.beam`` is not 0.
    """
    h, w = "feature_height", "feature_width"
    values = TensorSpec("values", "float32", (h, w, 2 * sizes.features))  # f, then f + q
    keys = TensorSpec("keys", "float32", (h, w, sizes.attention))  # W_f f + W_q q
    state = TensorSpec("state", "float32", (sizes.state,))  # hidden, cell, c'
    coverage = TensorSpec("coverage", "float32", (h, w))  # cumulative attention
    answer = (LATEX, TOKENS, SCORE, CONFIDENCE, ALTERNATIVES)
    encoded = (values, keys, FEATURE_SIZE, state)
    specs: tuple[ModelSpec, ...] = (
        ModelSpec(RECOGNIZE, (INPUT,), (*answer, ATTENTION, ATTENTION_BOX)),
        ModelSpec(
            RECOGNIZE_STREAM,
            (INPUT,),
            (*answer, TOKEN, TOKEN_SCORE, INDEX, ATTENTION, ATTENTION_BOX),
        ),
        ModelSpec(PREPROCESS, (INPUT,), (IMAGE, SIZE)),
        ModelSpec(ENCODER, (IMAGE, SIZE), encoded),
        ModelSpec(
            DECODER_STEP,
            # token: the previous one, <sos> before the first.
            (values, keys, FEATURE_SIZE, TensorSpec("token", "int32", (1,)), state, coverage),
            (
                # After <eos> a row repeats <eos> with score 0, and its state stands still.
                TensorSpec("tokens", "int32", (sizes.k,)),
                TensorSpec("scores", "float32", (sizes.k,)),  # log-probabilities
                TensorSpec("next_state", "float32", state.dims),
                TensorSpec("next_coverage", "float32", coverage.dims),
            ),
        ),
        ModelSpec(DECODE, encoded, (*answer, ATTENTION)),
    )
    if sizes.beam:
        # One step with the best candidates of every row, for beam search. A row first takes
        # state and coverage of the row `parent` of the same call, so hypotheses are reordered
        # inside the graph. Attention over the image is `next_coverage` less the parent's.
        specs += (
            ModelSpec(
                DECODER_BEAM,
                (
                    *(values, keys, FEATURE_SIZE, TensorSpec("token", "int32", (1,))),
                    *(TensorSpec("parent", "int32", (1,)), state, coverage),
                ),
                (
                    TensorSpec("candidates", "int32", (sizes.beam,)),  # best first
                    TensorSpec("scores", "float32", (sizes.beam,)),  # log-probabilities
                    TensorSpec("next_state", "float32", state.dims),
                    TensorSpec("next_coverage", "float32", coverage.dims),
                ),
            ),
        )
    return {spec.name: spec for spec in specs}
