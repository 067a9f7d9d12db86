"""The decoder's step for beam search: the best candidates of every row instead of the best one.

Sequence search needs three things that greedy decoding does not: several candidates a row,
one token a call (what to feed next is decided outside), and rows that continue other rows.
The last is done inside the graph: each row names its ``parent``, so states and coverage are
reordered where they are instead of travelling to the search and back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hmer.errors import BadParameter
from hmer.vocab import EOS_ID
from training.network import Encoded, Recogniser


class DecoderBeamGraph(nn.Module):
    """``decoder_beam`` of ``hmer.contract``: one step, the ``candidates`` best of every row.

    A row first takes state and coverage of its parent row, then advances by its token. A row
    whose token is ``<eos>`` stands still: its state and coverage are the parent's, and all its
    candidates are ``<eos>`` with score 0. Nothing but a batch's padding is fed so.
    """

    def __init__(self, model: Recogniser, candidates: int) -> None:
        """``model`` in evaluation mode; ``candidates``: N. Raises ``BadParameter``."""
        super().__init__()
        most = model.config.vocabulary_size
        if not 1 <= candidates <= most:
            raise BadParameter(
                f"A beam graph of {candidates} candidates is impossible: give 1 to {most}, the "
                "size of the vocabulary."
            )
        self.model = model
        self.candidates = candidates

    def forward(
        self,
        values: Tensor,
        keys: Tensor,
        feature_size: Tensor,
        token: Tensor,
        parent: Tensor,
        state: Tensor,
        coverage: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``token`` int32 (B, 1), the previous one; ``parent`` int32 (B, 1), a row of this call.

        The rest as ``Recogniser.step`` takes it, features in the rows' own order: a parent is a
        row of the same image. Returns ``candidates`` int32 (B, N), best first, their ``scores``
        float32 (B, N) (log-probabilities), and the state and the coverage after the step.
        """
        state = state.index_select(0, parent[:, 0])
        coverage = coverage.index_select(0, parent[:, 0])
        encoded = Encoded(values, keys, feature_size, state)
        step = self.model.step(encoded, token[:, 0], state, coverage)
        # Ranked by logits, as the argmax of `decoder_step` is: two log-probabilities may round
        # to one value.
        best = step.logits.topk(self.candidates, dim=-1, sorted=True).indices
        scores = torch.log_softmax(step.logits, dim=-1).gather(1, best)
        ended = token == EOS_ID
        return (
            torch.where(ended, EOS_ID, best.to(torch.int32)),
            torch.where(ended, 0.0, scores),
            torch.where(ended, state, step.state),
            torch.where(ended[:, :, None], coverage, step.coverage),
        )
