"""What a worker says of a model's file is made fit for a terminal and a report."""

from __future__ import annotations

import signal

from agent.errors import ModelRejected, WorkerError
from agent.links.template import describe_exit
from agent.links.worker import error_of
from agent.wire.worker import Failed


def test_words_of_a_worker_are_printable_and_short() -> None:
    error = error_of(Failed("model_rejected", "the model has \x1b[2J" + "n" * 9000, "a\nb" * 900))
    assert isinstance(error, ModelRejected)
    assert error.message.startswith(r"the model has \x1b[2Jnn")
    assert error.message.isprintable()
    assert error.hint.isprintable()
    assert (len(error.message), len(error.hint)) == (600, 300)


def test_a_code_that_nobody_knows_is_an_error_of_the_worker() -> None:
    assert type(error_of(Failed("no_such_code", "words"))) is WorkerError


def test_last_words_are_printable_and_short() -> None:
    error = describe_exit(3, 256, "first\n" + "\x1b]0;title\x07" * 100)
    assert error.hint.isprintable()
    assert len(error.hint) <= 300
    assert "signal 11, SIGSEGV" in describe_exit(-signal.SIGSEGV, 256, "").message
