"""What Triton runs: one folder a model, and the embedded server that hosts them.

::

    recognize/     the ensemble: preprocess -> encoder -> decode
    preprocess/    encoded picture or ink -> padded image
    encoder/       image -> features (where Triton has no backend of its own for the graph)
    decoder_step/  one call of the step graph (likewise)
    decode/        the autoregressive loop: adapts hmer.decode to Triton
    entry.py       the 1/model.py of every Python model: finds this code and the model's class
    triton.py      what the models share: parameters, bundle, errors
    graph.py       runs one graph of the bundle
    embedded.py    finds and lays out the tritonserver of nvidia-pytriton
    repository.py  opens and checks a repository
    endpoints.py   addresses and ports
    server.py      that server as a child process
    settings.py    what a server lets others do, and what it tells: Triton's options
    serve.py       the command hmer-serve
    foreground.py  what that command does until Ctrl-C
    log_lines.py   the server's log on the terminal, as text or JSON lines
    tracing.py     OpenTelemetry traces of requests
    docker.py      the line that serves a repository with NVIDIA's image instead
    container.py   what runs in there: checks the repository, becomes tritonserver
"""
