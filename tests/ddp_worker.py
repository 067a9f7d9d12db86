"""What each process of ``tests/test_ddp.py`` runs: ``torchrun -m tests.ddp_worker FOLDER``."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from tests.training_fixtures import NETWORK, settings, trainer
from training.network import NetworkConfig
from training.state import STATE_FILE
from training.train import Trainer

# Dropout would draw per process. The third batch of this seed has one row, which leaves a process
# without any. After a few more steps a rectifier at its kink lets runs part, one process or two.
EXACT = NetworkConfig(**{**NETWORK.__dict__, "dropout": 0.0})
SAME = {"limit": 3, "save_every": 2, "evaluate_every": 2, "learning_rate": 2e-4, "seed": 9}

THIRD = "third.safetensors"  # the state after three steps


def shared_run(folder: Path) -> Trainer:
    """Two steps, one more by a trainer that resumes, kept as ``THIRD``, and two by another."""
    for steps in (2, 3):
        part = trainer(folder, settings(steps=5, **SAME), EXACT)
        with part.stream() as made:
            while part.progress.step < steps:
                part.advance(*next(made))
        part.save()
        part.world.most([0.0])  # process 0 has written
    if part.world.rank == 0:
        shutil.copyfile(folder / STATE_FILE, folder / THIRD)
    last = trainer(folder, settings(steps=5, **SAME), EXACT)
    assert last.progress.step == 3
    last.run()
    return last


def main(folder: Path) -> None:
    shared = shared_run(folder / "shared")
    rank = shared.world.rank
    stopped = trainer(folder / "stopped", settings(steps=1000, **SAME), EXACT)
    rows = []
    with stopped.stream() as made:
        while True:
            job, batch = next(made)
            rows.append(len(batch.image))
            stopped.stopping = rank == 1 and stopped.progress.step == 3  # one process alone
            if stopped.advance(job, batch):
                break
    patient = trainer(
        folder / "patient",
        settings(steps=500, patience=2, **{**SAME, "evaluate_every": 2, "learning_rate": 0.0}),
        EXACT,
    )
    found = {
        "stopped": stopped.progress.step,
        "patient": patient.run().step,
        "rows": rows,
        "score": shared.progress.best_score,
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
