"""The network: its equations, masks, and what padding may not change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hmer.preprocess import to_batch
from hmer.vocab import SOS_ID
from training.evaluate import greedy
from training.network import Encoded, NetworkConfig, Recogniser, position_embedding

CONFIG = NetworkConfig(30, (8, 8, 16, 16), (2, 2, 2, 2, 1), attention=12, hidden=20, embedding=6)


@pytest.fixture(
    params=[
        ((2, 2, 2, 2, 1), 1), ((2, 1, 2, 2, 2), 1), ((1, 2, 2, 2, 1), 1), ((2, 2, 2, 1, 1), 3)
    ]
)  # fmt: skip
def model(request: pytest.FixtureRequest) -> Recogniser:
    torch.manual_seed(3)
    strides, reach = request.param
    config = replace(CONFIG, strides=strides, reach=reach)
    network = Recogniser(config)
    for module in network.modules():  # statistics as after training, not the neutral ones
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


def picture(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


def tensors(images: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    image, size = to_batch(images)
    return torch.from_numpy(image), torch.from_numpy(size)


@torch.no_grad()
def test_neighbours_and_padding_change_no_feature(model: Recogniser) -> None:
    images = [picture(32, 48, 1), picture(64, 16, 2), picture(48, 160, 3)]
    together = model.encode(*tensors(images))
    for row, image in enumerate(images):
        bare = torch.from_numpy(image)[None, None]
        alone = model.encode(bare, torch.tensor([image.shape], dtype=torch.int32))
        h, w = alone.keys.shape[1:3]
        assert together.size[row].tolist() == [h, w] == alone.size[0].tolist()
        for name in ("values", "keys"):
            padded = getattr(together, name)[row]
            torch.testing.assert_close(padded[:h, :w], getattr(alone, name)[0], atol=1e-5, rtol=0)
            assert not padded[h:].any()
            assert not padded[:, w:].any()
        torch.testing.assert_close(together.state[row], alone.state[0], atol=1e-5, rtol=0)


def test_neighbours_and_padding_change_no_token(model: Recogniser) -> None:
    images = [picture(32, 48, 1), picture(64, 16, 2), picture(48, 160, 3)]
    together = greedy(model, *tensors(images), 12)
    for row, image in enumerate(images):
        alone = greedy(model, *tensors([image]), 12)[0]
        assert together[row].ids == alone.ids
        assert together[row].scores == pytest.approx(alone.scores, abs=1e-4)


@pytest.mark.parametrize("reach", [1, 3])
@torch.no_grad()
def test_a_step_is_the_papers_equations(reach: int) -> None:
    torch.manual_seed(0)
    model = Recogniser(replace(CONFIG, reach=reach)).eval()
    d, u = CONFIG.features, CONFIG.hidden
    image, size = tensors([picture(32, 48, 5)])
    features = model.encoder(image.float() / 255, size)
    encoded = model.encoded(features, size)
    state, coverage = encoded.state, torch.rand_like(encoded.keys[..., 0])

    f = features[0].flatten(1).T  # (L, D)
    q = position_embedding(features.shape[2], features.shape[3], d).flatten(0, 1)
    h, cell, located = state[0].split([u, u, d])
    token = torch.tensor([7])
    read = torch.cat([model.embedding(token)[0], located])[None]
    h, cell = (part[0] for part in model.cell(read, (h[None], cell[None])))
    s = coverage.flatten()
    height, width = features.shape[2:]

    def around(position: int) -> torch.Tensor:
        y, x = divmod(position, width)
        side = range(-(reach // 2), reach // 2 + 1)
        inside = [(y + i, x + j) for i in side for j in side]
        return torch.stack([
            coverage[0, i, j] if 0 <= i < height and 0 <= j < width else torch.tensor(0.0)
            for i, j in inside
        ])  # fmt: skip

    hidden_part = model.query.weight @ h
    energies = torch.stack(
        [
            model.energy.weight[0]
            @ torch.tanh(
                model.key_feature.weight @ f[position]
                + model.key_feature.bias
                + model.key_position.weight @ q[position]
                + hidden_part
                + model.cumulative.weight.flatten(1) @ around(position)
            )
            for position in range(len(f))
        ]
    )
    alpha = torch.softmax(energies, 0)
    c, c_located = alpha @ f, alpha @ (f + q)
    logits = model.output(torch.tanh(model.mix(torch.cat([c, h]))))

    step = model.step(encoded, token, state, coverage)
    torch.testing.assert_close(step.attention.flatten(), alpha, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(step.logits[0], logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step.coverage.flatten(), s + alpha, atol=1e-6, rtol=1e-5)
    expected = torch.cat([h, cell, c_located])
    torch.testing.assert_close(step.state[0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_first_step_reads_the_initial_state() -> None:
    model = Recogniser(CONFIG).eval()
    encoded = model.encode(*tensors([picture(32, 48, 5)]))
    step = model.step(encoded, torch.tensor([SOS_ID]), encoded.state, model.begin(encoded))
    assert torch.equal(step.state[:, : 2 * CONFIG.hidden], encoded.state[:, : 2 * CONFIG.hidden])


@torch.no_grad()
def test_no_attention_falls_on_padding() -> None:
    model = Recogniser(CONFIG).eval()
    encoded = model.encode(*tensors([picture(16, 16, 1), picture(64, 96, 2)]))
    step = model.step(encoded, torch.tensor([5, 5]), encoded.state, model.begin(encoded))
    assert step.attention[0, 0, 0] == pytest.approx(1.0)
    assert step.attention.sum((1, 2)).tolist() == pytest.approx([1.0, 1.0])


def test_drop_attention_drops_in_training_only() -> None:
    config = NetworkConfig(**{**CONFIG.__dict__, "drop_attention": 0.5})
    model = Recogniser(config)
    alpha = torch.full((4, 200), 1 / 200)
    torch.manual_seed(0)
    dropped = model.train().drop(alpha)
    assert 0.35 < (dropped == 0).float().mean() < 0.65
    assert dropped.sum(-1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert torch.equal(model.eval().drop(alpha), alpha)


def test_position_embedding_tells_all_places_apart() -> None:
    places = position_embedding(12, 60, 64).flatten(0, 1)
    distance = torch.cdist(places, places) + 10 * torch.eye(len(places))
    assert distance.min() > 0.1


def test_configuration_round_trip() -> None:
    assert NetworkConfig.from_dict(CONFIG.to_dict()) == CONFIG
    assert CONFIG.stride == 16


def test_gradients_reach_every_parameter() -> None:
    model = Recogniser(CONFIG)
    encoded = model.encode(*tensors([picture(32, 48, 1), picture(32, 32, 2)]))
    state, coverage, loss = encoded.state, model.begin(encoded), torch.zeros(())
    for token in (SOS_ID, 5, 6):
        step = model.step(Encoded(*encoded), torch.tensor([token] * 2), state, coverage)
        state, coverage = step.state, step.coverage
        loss = loss + step.logits.logsumexp(-1).sum()
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []
