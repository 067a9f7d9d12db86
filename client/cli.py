"""``hmer-client``: recognise files, follow an answer, or ask a server how it is."""

from __future__ import annotations

import click

from client.pad.cli import pad
from client.recognize_cli import recognize
from client.server_cli import health, metrics, models
from client.stream_cli import stream


@click.group()
def main() -> None:
    """Handwritten formulas in, LaTeX out, from a running server (hmer-serve)."""


for _command in (recognize, stream, pad, health, models, metrics):
    main.add_command(_command)

if __name__ == "__main__":
    main()
