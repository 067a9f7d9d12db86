"""Names, dtypes and dims of every model's tensors, written once.

Everything that touches a tensor (export, the repository's ``config.pbtxt``, the served
models, the client, the tests) takes its names from here. Dims leave out the batch; a
string is a dynamic axis, and equal strings are equal sizes within one request.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTRACT_VERSION = 1

# The served models.
RECOGNIZE, PREPROCESS, ENCODER, DECODER_STEP, DECODER_BEAM, DECODE = (
    "recognize",
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
# The probability, 0..1, that the answer is right (`hmer.calibration`); NaN where the bundle has no
# calibration for the way the answer was searched for.
CONFIDENCE = TensorSpec("confidence", "float32", (1,))
# A JSON list of {"latex", "tokens", "score"}, best first, without the answer itself.
ALTERNATIVES = TensorSpec("alternatives", "bytes", (1,))


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
        ModelSpec(RECOGNIZE, (INPUT,), answer),
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
        ModelSpec(DECODE, encoded, answer),
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
