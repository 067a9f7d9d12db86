"""The served model ``recognize_stream``: ``model_repository.recognize``, answering as it goes."""
