"""The command line ``hmer-export``: one module a command, ``export.*_cli``."""

from __future__ import annotations

import click

from export.all_cli import all_stages
from export.engine_cli import aot_compile_command, engine
from export.gpu_cli import gpu
from export.inspect_cli import inspect
from export.onnx_cli import onnx
from export.precision_cli import precision
from export.repository_cli import repository
from export.verify_cli import verify
from hmer import __version__


@click.group()
@click.version_option(__version__, prog_name="hmer-export")
def main() -> None:
    """Turn a checkpoint into what is served.

    \b
    hmer-export all CHECKPOINT --output REPOSITORY
    or step by step:
    hmer-export onnx CHECKPOINT --output BUNDLE
    hmer-export verify CHECKPOINT BUNDLE
    hmer-export engine BUNDLE --output ENGINES       (TensorRT, on the GPU that will serve)
    hmer-export repository BUNDLE --output REPOSITORY
    hmer-export inspect ANYTHING
    hmer-export precision CHECKPOINT --data DATA     (what fp16, bf16 and int8 cost and gain)
    """


main.add_command(all_stages)
main.add_command(onnx)
main.add_command(verify)
main.add_command(repository)
main.add_command(precision)
main.add_command(inspect)
main.add_command(engine)
main.add_command(aot_compile_command)
main.add_command(gpu)


if __name__ == "__main__":
    main()
