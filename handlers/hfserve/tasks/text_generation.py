"""Prompts to their continuation, by transformers' `generate`: a batch at a time, each row as it would be alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, GenerationConfig, StoppingCriteriaList

from hfserve.config import HandlerConfig
from hfserve.errors import BadRequest, ConfigError, RequestError, Unprocessable
from hfserve.tasks.base import (
    Batch,
    Json,
    Model,
    Refused,
    Target,
    Task,
    Tensors,
    Truncation,
    choice,
    count,
    number,
    one_by_one,
)
from hfserve.tasks.inputs import each, lone_text
from hfserve.tasks.pieces import Row, pieces
from hfserve.tasks.stops import Stops
from hfserve.tasks.tokens import load_tokenizer, token_limit

TRIAL_TOKENS = 3  # the first and the later ones are all that differs
NEW_TOKENS = 64  # of an answer where the request does not say
MOST_EXPLAINED = 256
CONTEXT = 8  # tokens before an answer that are read with it, as a token's text depends on what is before it
EXPLAINED_TOKENS = 16  # of an explanation: each costs as much as the whole answer many times
MOST_BEAMS = 16
MOST_STOPS, LONGEST_STOP = 16, 200  # each is looked for at each token
RANGES = {"temperature": (0.01, 100), "top_p": (0.001, 1), "repetition_penalty": (0.1, 10)}
SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class GenerationParams:
    """What a request may ask for; null is what the model's own generation_config.json says.

    max_new_tokens: most tokens of the answer; null for 64, or as many as the model takes behind the prompt.
    do_sample: true draws tokens, as temperature, top_p and top_k shape it; false takes the likeliest.
    num_beams: sequences that beam search keeps. repetition_penalty: above 1 avoids what was said before.
    seed: makes what is drawn the same again. stop: texts that end the answer; they are not part of it.
    return_full_text: put the prompt before the answer.
    truncation: "error" refuses a prompt that is too long; true cuts its beginning and says so.
    """

    max_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] = ()
    return_full_text: bool = False
    truncation: bool | str = "error"

    def __post_init__(self) -> None:
        own = "the model's own setting"
        count("max_new_tokens", self.max_new_tokens, or_null=f"{NEW_TOKENS}")
        choice("do_sample", self.do_sample, [None, True, False])
        for name, (least, most) in RANGES.items():
            object.__setattr__(self, name, number(name, getattr(self, name), least, most))
        count("top_k", self.top_k, or_null=own, least=0, most=1_000_000)
        count("num_beams", self.num_beams, or_null=own, most=MOST_BEAMS)
        count("seed", self.seed, or_null="another answer each time", least=0, most=2**63 - 1)
        choice("return_full_text", self.return_full_text, [True, False])
        choice("truncation", self.truncation, [True, "error"])
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, list | tuple) or not all(isinstance(text, str) and text for text in stop):
            raise BadRequest("Give a text, or a list of texts.", "parameters.stop")
        if len(stop) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in stop):
            raise BadRequest(f"Give at most {MOST_STOPS} texts of {LONGEST_STOP} characters.", "parameters.stop")
        object.__setattr__(self, "stop", tuple(stop))  # parameters are compared by hash


class Prompt(NamedTuple):
    """A row's text, its tokens, how many may follow them, and the tokenizer's account of the text before it was cut."""

    text: str
    ids: list[int]
    new_tokens: int
    encoding: Any


class TextGeneration(Task):
    """Answers `{"generated_text"}`, the text that the model writes behind the prompt."""

    name = "text_generation"
    auto_class = "AutoModelForCausalLM"
    needs = "generate"
    scoring: ClassVar[dict[str, Any]] = {"logits_to_keep": 1}
    Params = GenerationParams
    columns: ClassVar[dict[str, str]] = {"generated_text": "BYTES"}

    def __init__(self, model_dir: Path, config: HandlerConfig) -> None:
        model = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=config.trust_remote_code)
        self.tokenizer = load_tokenizer(model_dir, config)
        self.pad_token_id = int(self.tokenizer.pad_token_id)
        self.max_tokens = token_limit(model, self.tokenizer, config.max_length)
        self.own = _own_settings(model_dir, model)
        ends = self.own.eos_token_id
        self.ends = {ends} if isinstance(ends, int) else set(ends or ())
        torch.seed()  # else every worker would draw the same

    def parse(self, payload: Json, params: GenerationParams) -> dict[str, str]:
        """A text, a `{"text"}` object, or a list of either."""
        return each(payload, lone_text)

    def check(self, params: GenerationParams) -> None:
        """Refuse parameters that would have no effect, or none that was meant."""
        if not self._draws(params):
            for name in SAMPLING:
                if getattr(params, name) is not None:
                    raise _bad("It shapes what is drawn: set parameters.do_sample to true, or leave it out.", name)
        if self._draws(params) and (params.num_beams or 1) > 1:
            raise _bad("Beam search draws nothing: set parameters.do_sample to false.", "num_beams")

    def size(self, item: str) -> int:
        """Return the item's characters."""
        return len(item)

    def encode(self, items: Sequence[str], params: GenerationParams) -> Batch:
        """Tokenise all prompts, padded on the left: what is generated follows the last token of each row."""
        tokens = self.tokenizer(list(items), verbose=False)
        rows: list[list[int]] = tokens["input_ids"]
        if nothing := {i: _nothing() for i, ids in enumerate(rows) if not ids}:
            raise Refused(nothing)
        most = self.max_tokens - (params.max_new_tokens or 1)
        too_long = {i: len(ids) for i, ids in enumerate(rows) if len(ids) > most}
        if too_long and (params.truncation == "error" or most < 1):
            raise Refused({i: self._refusal(tokens, params) for i, tokens in too_long.items()})
        rows = [ids[-most:] for ids in rows]
        prompts = [
            Prompt(text, ids, params.max_new_tokens or min(NEW_TOKENS, self.max_tokens - len(ids)), encoding)
            for text, ids, encoding in zip(items, rows, tokens.encodings or [None] * len(items), strict=True)
        ]
        return Batch(
            tensors=self._padded(rows, "left"),
            owner=range(len(items)),
            notes=prompts,
            truncated={i: Truncation(tokens, most) for i, tokens in too_long.items()},
        )

    def forward(self, model: Model, batch: Batch, params: GenerationParams) -> Tensors:
        """Generate. Returns `sequences` [rows, longest answer], padded on the right: the new tokens alone.

        Rows with as many tokens to come go together; with a seed each goes alone, as what is drawn for a row depends
        on the rows beside it.
        """
        found: dict[int, torch.Tensor] = {}
        try:
            for rows in self._groups(batch.notes, params):
                if params.seed is not None:
                    torch.manual_seed(params.seed)
                found |= zip(rows, self._generate(model, [batch.notes[row] for row in rows], params), strict=True)
        finally:
            if params.seed is not None:
                torch.seed()  # what others draw must not follow from this seed
        answers = [found[row] for row in range(len(batch.notes))]
        return {"sequences": pad_sequence(answers, batch_first=True, padding_value=self.pad_token_id)}

    def _groups(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[list[int]]:
        """Yield the rows that are generated together; beams are rows of their own, so that fewer prompts are."""
        alone = self._draws(params) and params.seed is not None
        together: dict[int, list[int]] = defaultdict(list)
        for row, prompt in enumerate(prompts):
            together[-row if alone else prompt.new_tokens].append(row)
        most = max(1, len(prompts) // (params.num_beams or self.own.num_beams or 1))
        for rows in together.values():
            yield from (rows[start : start + most] for start in range(0, len(rows), most))

    def _generate(self, model: Model, prompts: Sequence[Prompt], params: GenerationParams) -> torch.Tensor:
        """Return the new tokens [rows, tokens] of prompts that all may have as many."""
        tensors = self._padded([prompt.ids for prompt in prompts], "left")
        columns = tensors["input_ids"].shape[1]
        stops = StoppingCriteriaList([Stops(self._decode, params.stop, columns)] if params.stop else [])
        options = self._options(params, prompts[0].new_tokens)
        return model.generate(tensors, stopping_criteria=stops, **options)[:, columns:]

    def decode(self, outputs: Tensors, batch: Batch, params: GenerationParams) -> list[Json]:
        """From new tokens [rows, tokens] to one text a row."""
        return [
            {"generated_text": (prompt.text if params.return_full_text else "") + self._text(prompt, ids, params.stop)}
            for prompt, ids in zip(batch.notes, outputs["sequences"].tolist(), strict=True)
        ]

    def texts(self, item: str) -> dict[str, str]:
        """Return the prompt."""
        return {"prompt": item}

    def targets(
        self, model: Model, batch: Batch, params: GenerationParams, asked: Sequence[Json]
    ) -> list[list[Target]]:
        """One target for each token that the model writes, or for each of a text that a request's target gives.

        Where the target is a number it is that token's alone, counted from 0.
        """
        writing = [i for i, what in enumerate(asked) if not isinstance(what, str)]
        written: dict[int, list[int]] = {}
        if writing:
            prompts = replace(batch, notes=[batch.notes[i] for i in writing])
            written = dict(zip(writing, self.forward(model, prompts, params)["sequences"].tolist(), strict=True))
        return one_by_one(lambda i: self._targets(batch.notes[i], written.get(i, []), params, asked[i]), len(asked))

    def scores(self, outputs: Tensors, targets: Sequence[Target]) -> torch.Tensor:
        """Return the log-probability [rows] of the target's token behind the row."""
        logits = outputs["logits"][:, -1]
        places = torch.tensor([target.place for target in targets], device=logits.device)
        return logits.log_softmax(dim=-1).gather(1, places[:, None])[:, 0]

    def stack(self, rows: Sequence[Row]) -> Tensors:
        """See `Task.stack`; on the left, so that what is scored follows the last column."""
        tensors = self._padded([row["input_ids"] for row in rows], "left")
        # a model does not count by its mask
        return tensors | {"position_ids": (tensors["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)}

    def _targets(self, prompt: Prompt, written: list[int], params: GenerationParams, asked: Json) -> list[Target]:
        """Choose the tokens to explain that follow a prompt."""
        ids = self._asked(prompt, asked) if isinstance(asked, str) else self._said(prompt, written, params)
        places = self._places(ids, params, asked)
        names = self._names(prompt, ids[: max(places, default=-1) + 1])
        cut = len(prompt.encoding.ids) - len(prompt.ids) if prompt.encoding else 0
        tokens = [
            replace(piece, column=piece.column - cut)
            for piece in pieces(prompt.encoding, self.texts(prompt.text))
            if piece.column >= cut
        ]
        found = []
        for k in places:
            row = [*prompt.ids, *ids[:k]]
            record = {"token": names[k], "index": k, "tokens": len(ids)}
            found.append(Target(names[k], record, {"input_ids": row}, tokens, -len(row), ids[k], chance=math.exp))
        return found

    def _places(self, ids: list[int], params: GenerationParams, asked: Json) -> list[int]:
        """Return the numbers of the tokens to explain. Raises Unprocessable."""
        if asked is None:
            return list(range(min(len(ids), params.max_new_tokens or EXPLAINED_TOKENS, MOST_EXPLAINED)))
        if isinstance(asked, str):
            return list(range(len(ids)))
        if type(asked) is not int:
            raise BadRequest("Give a text that may follow, or the number of a token that is written.", "target")
        if not 0 <= asked < len(ids):
            raise Unprocessable(f"{len(ids)} tokens are written: give the number of one of them, from 0.", "target")
        return [asked]

    def _said(self, prompt: Prompt, written: list[int], params: GenerationParams) -> list[int]:
        """Return the tokens of an answer, without those of the stop text that ended it."""
        ids = self._before_end(written)
        room = len(self._text(prompt, ids, params.stop))
        ends = accumulate(map(len, self._names(prompt, ids))) if params.stop else ()
        return ids[: next((k for k, end in enumerate(ends) if end > room), len(ids))]

    def _names(self, prompt: Prompt, ids: list[int]) -> list[str]:
        """Return the text that each token adds; of several that spell one character the last adds it."""
        context = prompt.ids[-CONTEXT:]
        texts = [self._decode([*context, *ids[:k]]).rstrip("\ufffd") for k in range(len(ids) + 1)]
        return [after[len(before) :] for before, after in pairwise(texts)]

    def _asked(self, prompt: Prompt, text: str) -> list[int]:
        """Return the tokens of a text that a request wants explained as an answer."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        room = min(self.max_tokens - len(prompt.ids), MOST_EXPLAINED)
        if not 0 < len(ids) <= room:
            raise Unprocessable(
                f"The text has {len(ids)} tokens, and behind this prompt it may have 1 to {room}.", "target"
            )
        return ids

    def brief(self, result: Json) -> str:
        """Return the text, as TorchServe's example does, which has the prompt before it."""
        return str(result["generated_text"])

    def trial(self) -> GenerationParams:
        """Return parameters for a few tokens."""
        return GenerationParams(max_new_tokens=TRIAL_TOKENS, do_sample=False, num_beams=1)

    def samples(self) -> list[str]:
        """Return one short prompt and one that fills the model."""
        long = self.tokenizer("a " * self.max_tokens, verbose=False)["input_ids"][: self.max_tokens - TRIAL_TOKENS - 1]
        return ["a", self._decode(long)]

    def describe(self) -> dict[str, Json]:
        """Return limits."""
        return {"max_tokens": self.max_tokens}

    def proof(self, model: Model, batch: Batch) -> Tensors:
        """Return the logits [rows, vocabulary] of the token behind each prompt."""
        tensors = self._padded([prompt.ids for prompt in batch.notes], "right")  # a forward pass counts from the left
        last = tensors["attention_mask"].sum(dim=1) - 1
        return {"logits": model.run(tensors)["logits"][torch.arange(len(last)), last]}

    def golden_answers(self, proof: Tensors, batch: Batch) -> list[Json]:
        """Return the likeliest next token of each prompt, as text."""
        return self.decode({"sequences": proof["logits"].argmax(dim=-1, keepdim=True)}, batch, self.trial())

    def _draws(self, params: GenerationParams) -> bool:
        return bool(self.own.do_sample if params.do_sample is None else params.do_sample)

    def _options(self, params: GenerationParams, new_tokens: int) -> dict[str, Any]:
        """Return the arguments of transformers' generate."""
        asked = {name: getattr(params, name) for name in ("do_sample", "num_beams", "repetition_penalty", *SAMPLING)}
        given = {name: value for name, value in asked.items() if value is not None}
        # what a model's own settings may say otherwise, and what would answer in another shape
        plain = {"num_return_sequences": 1, "return_dict_in_generate": False, "stop_strings": None}
        return {"max_new_tokens": new_tokens, "pad_token_id": self.pad_token_id, **plain, **given}

    def _text(self, prompt: Prompt, ids: list[int], stop: Sequence[str]) -> str:
        """Read the new tokens up to the first end token or stop text."""
        ids = self._before_end(ids)
        before, whole = self._decode(prompt.ids), self._decode([*prompt.ids, *ids])
        # decoded together, because many tokenizers drop a space at the beginning
        text = whole[len(before) :] if whole.startswith(before) else self._decode(ids)
        return text[: min([text.find(mark) for mark in stop if mark in text], default=len(text))]

    def _before_end(self, ids: list[int]) -> list[int]:
        return ids[
            : next((i for i, token in enumerate(ids) if token in self.ends or token == self.pad_token_id), len(ids))
        ]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _padded(self, rows: Sequence[list[int]], side: str) -> Tensors:
        return dict(
            self.tokenizer.pad({"input_ids": list(rows)}, padding_side=side, return_tensors="pt", verbose=False)
        )

    def _refusal(self, tokens: int, params: GenerationParams) -> Unprocessable:
        room = f"the model takes {self.max_tokens} with the answer"
        if params.max_new_tokens is not None and tokens < self.max_tokens:
            most = self.max_tokens - tokens
            return Unprocessable(
                f"The prompt has {tokens} tokens and {room}: ask for {most} or fewer.", "parameters.max_new_tokens"
            )
        return Unprocessable(f"The prompt has {tokens} tokens and {room}: shorten it, or set truncation to true.")


def _own_settings(model_dir: Path, model: Any) -> GenerationConfig:  # noqa: ANN401  # a model's config
    """Return the model's own defaults of generation."""
    if not (model_dir / "generation_config.json").exists():
        return GenerationConfig.from_model_config(model)
    own = GenerationConfig.from_pretrained(model_dir, local_files_only=True)
    if own.do_sample and (own.num_beams or 1) > 1:
        raise ConfigError("generation_config.json has do_sample and num_beams: beam search draws nothing, remove one.")
    if own.do_sample and own.temperature is not None and own.temperature <= 0:
        raise ConfigError(f"generation_config.json draws at temperature {own.temperature}: set do_sample to false.")
    return own


def _nothing() -> RequestError:
    return BadRequest("The prompt has nothing that this model reads: send other text.")


def _bad(message: str, name: str) -> BadRequest:
    return BadRequest(message, f"parameters.{name}")
