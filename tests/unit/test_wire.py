import json
import time

import pytest
from hfserve import wire
from hfserve.errors import BadRequest, RequestError
from hfserve.forms import Answer, Call
from hfserve.tasks.base import Truncation
from hfserve.tasks.sequence_classification import SequenceClassification
from hfserve.wire import Describe

JSON = "application/json"
TASK = SequenceClassification.__new__(SequenceClassification)  # rendering needs its labels alone
TASK.labels = ["A", "B"]


def parse(value, content_type="", **headers):
    return wire.parse({"body": value}, {"body": {"content-type": content_type}, **headers})


def refused(value, content_type=JSON, **headers) -> tuple[int, str]:
    found = parse(value, content_type, **headers)
    assert isinstance(found, RequestError), found
    return int(found.status), found.field


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ({"inputs": "tea"}, Call("tea", "inputs")),
        ({"inputs": ["a", "b"]}, Call(["a", "b"], "inputs")),
        ({"inputs": "tea", "parameters": {"top_k": 2}}, Call("tea", "inputs", {"top_k": 2})),
        ({"inputs": "tea", "parameters": None}, Call("tea", "inputs")),
        ({"inputs": {"text": "a", "text_pair": "b"}}, Call({"text": "a", "text_pair": "b"}, "inputs")),
        ({"text": "tea", "target": 1}, Call({"text": "tea", "target": 1}, "")),
        ({"instances": ["a"]}, Call(["a"], "instances", form="v1")),
        ("tea", Call("tea", "body")),
        (["a", "b"], Call(["a", "b"], "body")),
    ],
)
def test_json_forms(body, call):
    assert parse(body, JSON) == call  # as TorchServe decodes it
    assert parse(json.dumps(body).encode(), "application/json; charset=utf-8") == call  # as it leaves it


def test_open_inference_tensors():
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}
    wanted = Call(["a", "b"], "inputs[0].data", form="v2", id="7")
    assert parse({"id": "7", "inputs": [tensor]}, JSON) == wanted
    column = {**tensor, "shape": [2, 1], "data": [["a"], ["b"]]}
    assert parse({"id": "7", "inputs": [column]}, JSON) == wanted
    pair = {**tensor, "name": "text_pair", "data": ["c", "d"]}
    rows = [{"text": "a", "text_pair": "c"}, {"text": "b", "text_pair": "d"}]
    assert parse({"inputs": [tensor, pair]}, JSON) == Call(rows, "inputs", form="v2")


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b"I loved it.\n", "I loved it.\n"),
        (b'{"inputs": "tea"}', "tea"),
        (b"{'text': \"it's\", 'target': 1}", {"text": "it's", "target": 1}),
        (b"[sic] he said", "[sic] he said"),
        (b"{not json at all", "{not json at all"),
        (b"{so} it goes", "{so} it goes"),
        (b"42", "42"),
        ("Zürich".encode(), "Zürich"),
    ],
)
def test_a_body_without_a_content_type_is_read_by_its_look(body, payload):
    assert parse(bytearray(body)).payload == payload
    assert parse(bytearray(body), "application/octet-stream").payload == payload


def test_plain_text_stays_text_even_when_it_looks_like_json():
    assert parse('{"inputs": "tea"}', "text/plain").payload == '{"inputs": "tea"}'
    assert parse("café".encode("latin-1"), "text/plain; charset=latin-1").payload == "café"


def test_form_fields():
    headers = {"data": {"content-type": ""}, "parameters": {"content-type": ""}}
    row = {"data": bytearray(b"tea"), "parameters": bytearray(b'{"top_k": 2}')}
    assert wire.parse(row, headers) == Call("tea", "body", {"top_k": 2})
    row = {"data": "tea", "parameters": {"top_k": 2}}  # parts with a content type arrive decoded
    assert wire.parse(row, {"data": {"content-type": "text/plain"}}) == Call("tea", "body", {"top_k": 2})
    row = {"data": bytearray(b"tea"), "target": bytearray(b"POSITIVE"), "format": bytearray(b"svg")}
    found = wire.parse(row, {"explain": "True"})
    assert (found.payload, found.target, found.format) == ("tea", "POSITIVE", "svg")
    for row, field in (
        ({"data": b"tea", "top_k": b"2"}, "top_k"),
        ({"data": b'{"inputs": "x", "target": 1}', "target": b"0"}, "target"),
        ({"data": b'{"inputs": "x", "parameters": {"top_k": 1}}', "parameters": b"{}"}, "parameters"),
        ({"data": b"tea", "parameters": b"[]"}, "parameters"),
    ):
        refusal = wire.parse(row, {"explain": "True"})
        assert (int(refusal.status), refusal.field) == (400, field)


@pytest.mark.parametrize(
    ("value", "content_type", "status", "field"),
    [
        (b'{"inputs": "x"', JSON, 400, ""),
        (b"[" * 100_000, JSON, 400, ""),
        (b"9" * 10_000, JSON, 400, ""),
        (b"", JSON, 400, ""),
        (b"   ", "", 400, ""),
        (b"\xff\xfe", "text/plain", 400, ""),
        (b"x", "text/plain; charset=nonsense", 415, ""),
        (b"x", "image/png", 415, ""),
        (5, JSON, 400, ""),
        (None, JSON, 400, ""),
        ({"inputs": "x", "top_k": 2}, JSON, 400, "top_k"),
        ({"inputs": "x", "parameters": []}, JSON, 400, "parameters"),
        ({"instances": "x"}, JSON, 400, "instances"),
        ({"id": 5, "inputs": [{"name": "t", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}, JSON, 400, "id"),
        ({"inputs": [{"name": "t", "shape": [1], "datatype": "FP32", "data": [1.0]}]}, JSON, 400, "inputs[0].datatype"),
        ({"inputs": [{"name": "t", "shape": [2], "datatype": "BYTES", "data": ["a"]}]}, JSON, 400, "inputs[0].shape"),
        ({"inputs": [{"name": "t", "shape": [1], "datatype": "BYTES", "data": [5]}]}, JSON, 400, "inputs[0].data[0]"),
        ({"inputs": [{"name": "t", "shape": [1], "datatype": "BYTES"}]}, JSON, 400, "inputs[0].data"),
        ({"inputs": [{"shape": [1], "datatype": "BYTES", "data": ["a"]}]}, JSON, 400, "inputs[0].name"),
        ({"inputs": [{"datatype": "BYTES"}, 5]}, JSON, 400, "inputs[0].name"),
    ],
)
def test_what_is_not_read_is_refused(value, content_type, status, field):
    assert refused(value, content_type) == (status, field)


def test_a_row_without_input_tells_what_to_send():
    found = wire.parse({'{"inputs": "tea"}': bytearray(b"")}, {})  # curl -d without a content type
    assert int(found.status) == 415
    assert "Content-Type: application/json" in found.message


def test_explanations_and_descriptions_are_told_apart():
    assert parse({"inputs": "x"}, explain="True").explain
    assert not parse({"inputs": "x"}, explain="False").explain
    assert isinstance(wire.parse({}, {"describe": "True"}), Describe)


def test_quoted_text_is_not_evaluated():
    assert refused(b"{'text': __import__('os').getpid()}", "") == (400, "")


@pytest.mark.parametrize("body", ['{"text": "open', '["a", "b"', '{"text": "a",}', "{'text': 'a'", "{ 'a", '["'])
def test_what_opens_like_json_and_is_none_is_refused(body):
    assert refused(body.encode(), "") == (400, "")
    assert parse(body, "text/plain").payload == body


def test_odd_quoting_takes_no_time():
    for body in ("{" + "\\'" * 60_000, "{'" + "\\" * 120_001, "{'" * 60_000, "{'a': " + "[" * 9_000, "{'a'" * 30_000):
        start = time.monotonic()
        parse(body.encode())
        assert time.monotonic() - start < 2  # a quadratic scan takes a minute


@pytest.mark.parametrize(
    ("written", "read"), [("(1,2)", [1, 2]), ("(1,)", [1]), ("((0, 1), ())", [[0, 1], []]), ("'(,)'", "(,)")]
)
def test_tuples_are_lists(written, read):
    for quote in "'", '"':
        body = f'{{{quote}text{quote}: "so (1,) it is", "target":{written}}} \n'
        assert parse(body.encode()).payload == {"text": "so (1,) it is", "target": read}


def test_lists_of_quoted_texts():
    assert parse(b"['it', \"it's\"]").payload == ["it", "it's"]


def test_a_byte_order_mark_is_no_text():
    assert parse(b"\xef\xbb\xbf" + b'{"inputs": "tea"}').payload == "tea"
    assert parse(b"\xef\xbb\xbf" + b'{"inputs": "tea"}', "application/json; charset=utf-8").payload == "tea"
    assert parse("\ufefftea", "text/plain").payload == "tea"


def test_the_charset_of_a_text_that_torchserve_has_decoded():
    sent = "tea".encode("utf-16-le")
    assert parse(sent.decode(), "text/plain; charset=utf-16-le").payload == "tea"


@pytest.mark.parametrize("charset", ["undefined", "nonsense", "utf-8\0"])
def test_an_unknown_charset_is_415(charset):
    assert refused(b'{"inputs": "tea"}', f"application/json; charset={charset}") == (415, "")


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": "a", "\ud800": 1},
        {"inputs": "a", "parameters": {"\ud800": 1}},
        {"id": "\ud800", "inputs": [{"name": "t", "shape": [1], "datatype": "BYTES", "data": ["a"]}]},
    ],
)
def test_half_a_character_outside_of_the_text_can_be_sent_back(body):
    call = parse(body, JSON)
    if isinstance(call, Call) and call.form != "v2":
        call = BadRequest("Unknown parameter.", f"parameters.{next(iter(call.parameters))}")
    response = (
        wire.render(call, Answer([RECORDS], {}), TASK, "m") if isinstance(call, Call) else wire.render_error(call)
    )
    json.loads(response.body.encode())  # as TorchServe sends it


def test_parameters_are_given_once():
    row = {"data": bytearray(b'{"inputs": "a", "parameters": {"top_k": 1}}'), "parameters": bytearray(b'{"top_k": 2}')}
    assert wire.parse(row, {}).field == "parameters"


def test_tensors_of_one_name_are_refused():
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    assert refused({"inputs": [tensor, tensor]}) == (400, "inputs")


def test_a_client_cannot_ask_for_the_description_in_place_of_an_answer():
    assert isinstance(parse({"inputs": "x"}, JSON, describe="True"), Call)


@pytest.mark.parametrize(
    "text", ["it's", 'say "so"', "a\tb\nc\\d", "\x07é\u202eש😀\U000e0001", "None, True", "{'a': 1}", ""]
)
def test_quoted_text_is_read_as_python_wrote_it(text):
    body = {"text": text, "none": None, "yes": True, "n": [1, 2.5, {"no": False}]}
    assert parse(str(body).encode()).payload == body


@pytest.mark.parametrize(
    ("accept", "short"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/plain", True),
        ("text/plain, application/json", True),
        ("application/json, text/plain, */*", False),  # what axios sends
        ("application/json, text/plain;q=0.5", False),
        ("text/plain;q=0.9, */*;q=0.1", True),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/plain;q=nonsense", False),
    ],
)
def test_accept_chooses_the_short_form(accept, short):
    wanted = "text" if short else "json"
    assert parse("tea", "text/plain", accept=accept).format == wanted
    assert parse("tea", "text/plain", Accept=accept).format == wanted


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8", "html"),  # what browsers send
        ("image/svg+xml", "svg"),
        ("application/vnd.torchserve+json", "upstream"),
        ("text/plain", "text"),
        ("*/*", "json"),
        ("", "json"),
        ("text/html;q=0, application/json", "json"),
        ("image/png", "json"),
    ],
)
def test_accept_chooses_how_an_explanation_is_shown(accept, wanted):
    assert parse("tea", "text/plain", accept=accept, explain="True").format == wanted
    named = parse({"inputs": "x", "parameters": {"format": "svg", "n_steps": 5}}, accept=accept, explain="True")
    assert (named.format, named.parameters) == ("svg", {"n_steps": 5})
    for other in ("pdf", 5, ["svg"]):
        assert refused({"inputs": "x", "parameters": {"format": other}}, explain="True") == (400, "parameters.format")
        assert refused({"inputs": "x", "format": other}, explain="True") == (400, "format")
    beside = parse({"text": "x", "target": 1, "format": "svg"}, explain="True")
    assert (beside.format, beside.payload) == ("svg", {"text": "x", "target": 1})
    assert parse({"inputs": "x", "target": 1}, explain="True").target == 1
    assert parse({"inputs": "x", "target": 1, "format": "text"}).format == "text"
    assert refused({"inputs": "x", "format": "html"}) == (400, "format")


# --- responses


RECORDS = [{"label": "A", "score": 0.75}, {"label": "B", "score": 0.25}]


def body(call, answer):
    response = wire.render(call, answer, TASK, "m")
    assert response.status == 200
    return json.loads(response.body)


def test_one_input_one_result_a_list_a_list():
    assert body(Call("x"), Answer([RECORDS], {}, lone=True)) == RECORDS
    assert body(Call(["x"]), Answer([RECORDS], {})) == [RECORDS]


def test_v1_and_v2_answers():
    assert body(Call(["x"], form="v1"), Answer([RECORDS], {})) == {"predictions": [RECORDS]}
    answer = body(Call(["x", "y"], form="v2", id="7"), Answer([RECORDS, RECORDS[::-1]], {1: Truncation(9, 5)}))
    assert answer == {
        "model_name": "m",
        "id": "7",
        "outputs": [
            {"name": "label", "shape": [2, 2], "datatype": "BYTES", "data": ["A", "B", "B", "A"]},
            {"name": "score", "shape": [2, 2], "datatype": "FP32", "data": [0.75, 0.25, 0.25, 0.75]},
        ],
        "parameters": {"truncated": "1;tokens=9;used=5"},
    }


def test_a_truncation_is_told_in_every_form():
    cut = Answer([RECORDS], {0: Truncation(900, 512)}, lone=True)
    told = {"truncated": {"tokens": 900, "used": 512}}
    assert body(Call("x"), cut) == [record | told for record in RECORDS]
    assert body(Call(["x"], form="v1"), cut) == {"predictions": [[record | told for record in RECORDS]]}
    short = wire.render(Call("x", format="text"), cut, TASK, "m")
    assert short.body == "A"
    assert short.headers["x-truncated"] == "0;tokens=900;used=512"


def test_the_short_form_is_a_label_a_line():
    response = wire.render(Call(["x", "y"], format="text"), Answer([RECORDS, RECORDS[::-1]], {}), TASK, "m")
    assert response.body == "A\nB"
    assert response.headers == {"content-type": "text/plain; charset=utf-8"}


def test_errors_have_one_shape_and_name_the_field():
    response = wire.render(Call("x"), BadRequest("Give less.", "parameters.top_k"), TASK, "m")
    assert response.status == 400
    wanted = {"code": 400, "type": "BadRequest", "message": "Give less.", "field": "parameters.top_k"}
    assert json.loads(response.body) == {"error": wanted}
    assert json.loads(wire.render_error(BadRequest("Empty.")).body)["error"]["field"] == "body"


def test_nan_is_our_fault_and_never_json(caplog):
    response = wire.render(Call("x"), Answer([[{"label": "A", "score": float("nan")}]], {}), TASK, "m")
    assert response.status == 500
    assert json.loads(response.body)["error"]["type"] == "InternalError"
