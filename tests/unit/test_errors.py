import logging

from hfserve.errors import BadRequest, InternalError, isolated, report


def test_fields_join_as_paths():
    assert BadRequest("", "[2].text").under("inputs").field == "inputs[2].text"
    assert BadRequest("", "text").under("inputs").field == "inputs.text"
    assert BadRequest("", "").under("inputs").field == "inputs"
    assert BadRequest("", "text").under("").field == "text"


def test_the_log_of_a_fault_has_the_stack_but_not_the_text(caplog):
    def fail(text):
        raise ValueError(f"cannot read {text}")

    with caplog.at_level(logging.ERROR):
        told = isolated(fail, "my secret")
    assert isinstance(told, InternalError)
    assert "my secret" not in told.message
    assert "my secret" not in caplog.text
    assert "ValueError" in caplog.text
    assert "in fail" in caplog.text


def test_what_torch_says_of_shapes_is_kept(caplog):
    report(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert "mat1 and mat2" in caplog.text


def test_a_request_error_passes_as_it_is():
    error = BadRequest("no", "field")

    def fail():
        raise error

    assert isolated(fail) is error
