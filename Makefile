# `make` alone lists the commands. Each is one line of plain shell that you can also type yourself.
.DEFAULT_GOAL := help
.PHONY: help demo setup download archive archives verify swap start stop status predict explain test benchmark lint lock starters clean
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
MODE ?= sequence_classification
CONFIG ?= artifacts/$(MODE)/model-config.yaml
TEXT ?= The staff were friendly and the room was spotless.
VERSION ?= 1.0
MAR ?= model_store/$(MODE).mar
SOURCE = $(if $(MODEL),--model "$(MODEL)") $(if $(REVISION),--revision $(REVISION))
RUN = $(VENV)/bin/python -m
export TORCH_INDEX_URL

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: setup  ## everything from nothing: environment, weights, archive, server, a prediction and why; leaves the server up
	@$(RUN) scripts.build_archive --mode sequence_classification
	@$(RUN) scripts.server start --replace
	@$(RUN) scripts.predict -- "$$TEXT"
	@$(RUN) scripts.explain -- "$$TEXT"
	@echo 'Try your own: make predict TEXT="..."    make explain TEXT="..."    The end: make stop'

setup:  ## make .venv from requirements.lock (PYTHON=python3.12 chooses, TORCH_INDEX_URL=... takes torch from there)
	@$(PYTHON) scripts/setup_environment.py $(VENV)

download: setup  ## prepare weights in models/ [MODE= | CONFIG=] [MODEL=hub id or folder] [REVISION=] [PICKLE=]
	@$(RUN) scripts.download_models --config "$(CONFIG)" $(SOURCE) $(if $(PICKLE),--pickle $(PICKLE))

archive: setup  ## build model_store/<name>.mar [MODE= | CONFIG=] [MODEL=] [REVISION=] [VERSION=1.0]
	@$(RUN) scripts.build_archive --config "$(CONFIG)" --version $(VERSION) $(SOURCE)

archives: setup  ## build the archive of every folder in artifacts/
	@for config in artifacts/*/model-config.yaml; do $(RUN) scripts.build_archive --config "$$config" || exit 1; done

verify: setup  ## check every byte of an archive and its golden inputs on this machine [MAR=model_store/<name>.mar]
	@$(RUN) scripts.verify "$(MAR)"

swap: setup  ## replace a running model by a newly built archive; no request fails [MODE= | CONFIG=] [MODEL=] [REVISION=]
	@$(RUN) scripts.swap --config "$(CONFIG)" $(SOURCE)

start: setup  ## serve every archive in model_store/ on 127.0.0.1, and return when they answer
	@$(RUN) scripts.server start

stop: setup  ## stop the server
	@$(RUN) scripts.server stop

status: setup  ## show the server's addresses and models
	@$(RUN) scripts.server status

demo predict explain: override export TEXT := $(value TEXT)
predict explain: override export QUESTION := $(value QUESTION)
predict: setup  ## ask the running server [MODE=] [TEXT="..."] [QUESTION="..." for question_answering]
	@$(RUN) scripts.predict --model $(MODE) $(if $(value QUESTION),--question "$$QUESTION") -- "$$TEXT"

explain: override export METHOD := $(value METHOD)
explain: override export TARGET := $(value TARGET)
explain: override export HTML := $(value HTML)
explain: override export SVG := $(value SVG)
explain: setup  ## ask it why [MODE=] [TEXT="..."] [QUESTION="..."] [TARGET=] [METHOD=] [HTML=file] [SVG=file]
	@$(RUN) scripts.explain --model $(MODE) $(if $(value QUESTION),--question "$$QUESTION") \
		$(if $(value TARGET),--target "$$TARGET") $(if $(value METHOD),--method "$$METHOD") \
		$(if $(value HTML),--html "$$HTML") $(if $(value SVG),--svg "$$SVG") -- "$$TEXT"

test: setup  ## run all tests [ARGS=...]
	@$(RUN) pytest $(ARGS)

benchmark: setup  ## measure building, loading and explaining of MODE= as ratios
	@$(RUN) scripts.benchmark --mode $(MODE)

lint: setup  ## check style and types
	@$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) mypy

lock: setup  ## renew requirements.lock from pyproject.toml, for every supported Python
	@$(RUN) scripts.lock

starters: setup  ## train the starter model of MODE= again
	@$(RUN) pip install -q -c requirements.lock 'peft>=0.17' && $(RUN) scripts.train_starters $(MODE)

clean:  ## stop the server and remove what was built: environment, weights, archives, logs
	@test ! -x $(VENV)/bin/python || $(RUN) scripts.server stop
	rm -rf $(VENV) .run models model_store logs
