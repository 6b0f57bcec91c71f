"""The request forms and their answers: transformers', TorchServe's example's, KServe v1's, Open Inference Protocol's.

`read` tells a body's form by its keys and makes a `Call` of it; `write` puts results into the form their call came in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hfserve.errors import BadRequest
from hfserve.tasks.base import Json, Task, Truncation
from hfserve.views.explained import Explained


@dataclass(frozen=True)
class Call:
    """One request, whatever form it came in.

    payload: what the task parses; root: where it stood in the body, which error fields are relative to.
    """

    payload: Json
    root: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    form: str = "plain"  # a key of FORMS
    id: str | None = None  # the Open Inference Protocol's
    explain: bool = False  # asks why, and not what
    target: Json = None  # of what, for each input that does not say so itself
    format: Json = "json"  # what the answer is written in; None where the body does not say


@dataclass(frozen=True)
class Answer:
    """A result for each item of a call; `truncated` tells of those that were cut.

    results: what the task made of each, or `Explained`. lone: the call asked of one input, and not of a list of one.
    """

    results: Sequence[Json]
    truncated: Mapping[int, Truncation]
    lone: bool = False


def read(body: Json) -> Call:
    """Tell the request forms apart by their keys, and refuse a key that the form does not have."""
    if isinstance(body, str | list):
        return Call(body, "body", format=None)
    if not isinstance(body, dict):
        raise BadRequest('Send a text, a list of texts, or an object such as {"inputs": "..."}.')
    rest = dict(body)
    given, written = rest.pop("parameters", None), rest.pop("format", None)
    parameters = {} if given is None else as_object(given, "parameters")
    call = _reader(rest)(rest)
    call = replace(call, target=rest.pop("target", None), format=written)
    for key in rest:
        raise BadRequest('Unknown key beside the inputs; options stand under "parameters".', str(key))
    return replace(call, parameters=parameters)


def _reader(body: dict[str, Any]) -> Callable[[dict[str, Any]], Call]:
    """Choose by its keys the function that takes a body's inputs out of it."""
    if "instances" in body:
        return _read_v1
    if "inputs" not in body:
        return _read_object
    return _read_v2 if _has_tensors(body["inputs"]) else _read_inputs


def _read_inputs(body: dict[str, Any]) -> Call:
    return Call(body.pop("inputs"), "inputs")


def _read_object(body: dict[str, Any]) -> Call:
    """The form of TorchServe's example: the object itself is the input, and the task knows its keys."""
    call = Call(dict(body), "")
    body.clear()
    return call


def _read_v1(body: dict[str, Any]) -> Call:
    instances = body.pop("instances")
    if not isinstance(instances, list):
        raise BadRequest("Give a list, one entry for each input.", "instances")
    return Call(instances, "instances", form="v1")


def _read_v2(body: dict[str, Any]) -> Call:
    tensors = [_read_tensor(tensor, f"inputs[{i}]") for i, tensor in enumerate(body.pop("inputs"))]
    identity = body.pop("id", None)
    if identity is not None and not isinstance(identity, str):
        raise BadRequest("Give a string.", "id")
    if len(tensors) == 1:
        return Call(tensors[0][1], "inputs[0].data", form="v2", id=identity)
    names, columns = zip(*tensors, strict=True)
    if len(set(names)) < len(names):
        raise BadRequest("Two tensors have the same name: name each once.", "inputs")
    if len({len(column) for column in columns}) != 1:
        raise BadRequest("The tensors differ in length: give each the same number of entries.", "inputs")
    entries = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return Call(entries, "inputs", form="v2", id=identity)


def _has_tensors(inputs: Json) -> bool:
    return isinstance(inputs, list) and any(isinstance(entry, dict) and "datatype" in entry for entry in inputs)


def _read_tensor(tensor: Json, where: str) -> tuple[str, list[str]]:
    """Read a BYTES tensor of shape [n] or [n, 1] to its name and its n strings."""
    tensor = as_object(tensor, where)
    if tensor.get("datatype") != "BYTES":
        raise BadRequest("Texts are sent as BYTES.", f"{where}.datatype")
    if not isinstance(tensor.get("name"), str):
        raise BadRequest("Give the tensor a name.", f"{where}.name")
    data, shape = tensor.get("data"), tensor.get("shape")
    if not isinstance(data, list):
        raise BadRequest("Give a list of strings.", f"{where}.data")
    texts = [text for entry in data for text in (entry if isinstance(entry, list) else [entry])]
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadRequest("Give a string.", f"{where}.data[{i}]")
    if shape not in ([len(texts)], [len(texts), 1]):
        raise BadRequest(f"The data has {len(texts)} entries: the shape is [{len(texts)}].", f"{where}.shape")
    return tensor["name"], texts


def as_object(value: Json, where: str) -> dict[str, Any]:
    """Return `value`, if it is a JSON object. Raises BadRequest for field `where`."""
    if not isinstance(value, dict):
        raise BadRequest("Give an object.", where)
    return value


def write(call: Call, answer: Answer, task: Task, model_name: str) -> Json:
    """Put the results of a call into its form, with what was cut told beside each."""
    forms = EXPLANATION_FORMS if call.explain else FORMS
    return forms[call.form](call, answer, task, model_name)


def tell(truncated: Mapping[int, Truncation]) -> str:
    """Return `0;tokens=900;used=512, 3;...`: for answers that have no room beside a result."""
    return ", ".join(f"{i};tokens={cut.tokens};used={cut.used}" for i, cut in truncated.items())


def _marked(answer: Answer) -> list[Json]:
    results = [result.to_json() if isinstance(result, Explained) else result for result in answer.results]
    return [_mark(result, answer.truncated.get(i)) for i, result in enumerate(results)]


def _mark(result: Json, cut: Truncation | None) -> Json:
    """Write into the records of an item that its text was cut, and from how many tokens to how many."""
    if cut is None:
        return result
    if isinstance(result, list):
        return [_mark(record, cut) for record in result]
    return {**result, "truncated": cut.to_json()}


def _plain(call: Call, answer: Answer, task: Task, model_name: str) -> Json:
    """As transformers' pipelines: one input, one result; a list of inputs, a list of results."""
    results = _marked(answer)
    return results[0] if answer.lone else results


def _v1(call: Call, answer: Answer, task: Task, model_name: str) -> Json:
    return {"predictions": _marked(answer)}


def _v2(call: Call, answer: Answer, task: Task, model_name: str) -> Json:
    """One tensor a field of the records: [items, records] where an item has several records, else [items].

    Where items differ in their number of records the tensors are [records], and `item` tells whose each is.
    """
    several = isinstance(answer.results[0], list)
    rows = [result if several else [result] for result in answer.results]
    records = [record for row in rows for record in row]
    shape = [len(records)] if task.ragged or not several else [len(rows), len(rows[0])]
    outputs = [
        {"name": name, "shape": shape, "datatype": kind, "data": [record[name] for record in records]}
        for name, kind in task.columns.items()
        if all(name in record for record in records)
    ]
    if task.ragged:
        owners = [i for i, row in enumerate(rows) for _ in row]
        outputs.append({"name": "item", "shape": shape, "datatype": "INT64", "data": owners})
    cut = tell(answer.truncated)  # the protocol's parameters are strings, numbers or booleans
    content = {"model_name": model_name, "id": call.id, "outputs": outputs, "parameters": cut and {"truncated": cut}}
    return {name: value for name, value in content.items() if value}


def _v1_explanations(call: Call, answer: Answer, task: Task, model_name: str) -> Json:
    return {"explanations": _marked(answer)}


def _v2_explanations(call: Call, answer: Answer, task: Task, model_name: str) -> Json:
    """One BYTES tensor [items] of JSON texts: an explanation is no record of plain numbers."""
    texts = [json.dumps(result, ensure_ascii=False, allow_nan=False) for result in _marked(answer)]
    outputs = [{"name": "explanation", "shape": [len(texts)], "datatype": "BYTES", "data": texts}]
    content = {"model_name": model_name, "id": call.id, "outputs": outputs}
    return {name: value for name, value in content.items() if value}


Form = Callable[[Call, Answer, Task, str], Json]
FORMS: dict[str, Form] = {"plain": _plain, "v1": _v1, "v2": _v2}
EXPLANATION_FORMS: dict[str, Form] = {"plain": _plain, "v1": _v1_explanations, "v2": _v2_explanations}
