"""The handler in TorchServe's own context: who is answered when, and what may not be raised any more."""

import json
import socket
import warnings
from types import SimpleNamespace

import pytest
import torch
from hfserve.config import parse_config
from hfserve.pipeline import Pipeline
from transformer_handler import TransformerHandler

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)  # TorchServe leaves the file of its version open
    from ts.context import Context, RequestProcessor


@pytest.fixture
def handler(model_dir):
    config = parse_config({"handler": {"mode": "sequence_classification", "engine": "eager"}})
    handler = TransformerHandler()
    handler.pipeline = Pipeline.load(model_dir, config, torch.device("cpu"))
    handler.model_name, handler.end, handler.description = "m", None, {}
    return handler


@pytest.fixture
def batch():
    """A function that makes TorchServe's context for rows of (text, explain), and a socket with what is sent early."""
    ends = socket.socketpair()

    def batch(*rows, over="Host"):
        context = Context("m", ".", {}, len(rows), None, "2.0")
        context.request_ids = {i: f"id-{i}" for i in range(len(rows))}
        headers = [{over: "x", "explain": str(explain)} for _, explain in rows]
        context.request_processor = [RequestProcessor(one) for one in headers]
        context.cl_socket = ends[0]
        return [{"body": {"inputs": text}} for text, _ in rows], context

    ends[1].setblocking(False)
    yield SimpleNamespace(make=batch, sent=lambda: received(ends[1]))
    for end in ends:
        end.close()


def received(end):
    try:
        return end.recv(1 << 20)
    except BlockingIOError:
        return b""


def test_predictions_go_first_and_get_no_second_answer(handler, batch):
    rows, context = batch.make(("tea", True), ("the room", False), (5, False), ("never", True))
    bodies = handler.handle(rows, context)
    early = batch.sent()
    assert context.request_ids == {0: "id-0", 3: "id-3"}
    assert early.count(b"id-1") == 2  # as a stream: its body, and its end
    assert early.count(b"id-2") == 1
    assert bodies[1].encode() in early
    assert [context.get_response_status(i)[0] for i in range(4)] == [200, 200, 400, 200]
    assert [isinstance(json.loads(body), dict) for body in bodies] == [True, False, True, True]


@pytest.mark.parametrize(
    ("rows", "over"),
    [
        ([("tea", True), ("never", True)], "Host"),
        ([("tea", False), ("never", False)], "Host"),
        ([("tea", True), (5, False)], "Host"),  # TorchServe would close its connection behind the headers
        ([("tea", True), ("never", False)], "grpc"),
    ],
)
def test_all_wait_where_nothing_can_be_sent_first(handler, batch, rows, over):
    data, context = batch.make(*rows, over=over)
    assert len(handler.handle(data, context)) == len(rows)
    assert batch.sent() == b""
    assert len(context.request_ids) == len(rows)


def test_nothing_is_raised_once_some_are_answered(handler, batch, monkeypatch):
    def explain(calls, deadline):
        raise RuntimeError("odd")

    monkeypatch.setattr(handler.pipeline, "explain", explain)
    rows, context = batch.make(("tea", True), ("the room", False))
    bodies = handler.handle(rows, context)
    assert json.loads(bodies[0])["error"]["code"] == 500
    assert json.loads(bodies[1])[0]["label"]


def test_a_lost_accelerator_ends_the_worker_with_the_next_batch(handler, batch, monkeypatch):
    def explain(calls, deadline):
        raise SystemExit("The accelerator failed.")

    monkeypatch.setattr(handler.pipeline, "explain", explain)
    bodies = handler.handle(*batch.make(("tea", True), ("the room", False)))
    assert json.loads(bodies[0])["error"]["code"] == 500
    with pytest.raises(SystemExit):
        handler.handle(*batch.make(("tea", False)))
