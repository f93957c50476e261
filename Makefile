# Each target sets up what it needs (a venv, once, and again when settings.ini changes) and then does its one job.
PYTHON ?= python3
VENV ?= .venv
DATA ?= sample
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
# The notebooks and tests run without a network, where the system lets a user take it away.
OFFLINE := $(shell unshare -rn true 2>/dev/null && echo "unshare -rn")

run: $(READY)  ## train the ladder of models; DATA=imagenette or a folder for real photos
	$(BIN)/resnet_course ladder --data "$(DATA)" --resume

test: $(READY)  ## everything that CI runs
	PATH="$(BIN):$$PATH" bash .ci/in_step
	@test -n "$(OFFLINE)" || echo "no unshare here: the tests run with the network on"
	$(OFFLINE) $(BIN)/nbdev_test --n_workers 1 --timing
	@# several processes: one thread each, or they stall each other
	$(OFFLINE) env OMP_NUM_THREADS=1 $(BIN)/nbdev_test
	$(OFFLINE) $(BIN)/nbdev_test --path index.ipynb
	$(OFFLINE) $(BIN)/python .ci/exercises
	$(OFFLINE) $(BIN)/python -m pytest -q tests

lab: $(READY)  ## open the lessons in JupyterLab
	@# fastai scripts a function when it is imported, of which torch warns: nothing that a learner could mend
	PYTHONWARNINGS=ignore::FutureWarning:torch.jit._script $(BIN)/jupyter lab --notebook-dir=. nbs/00_why.ipynb

readme: $(READY)  ## make README.md from index.ipynb
	$(BIN)/python .ci/readme.py

$(READY): settings.ini setup.py
	@# a venv that was not finished, or of an older Python, is made anew
	$(BIN)/python -c 'import pip, sys; assert sys.version_info>=(3,11)' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	$(BIN)/python -m pip check
	if git rev-parse --git-dir >/dev/null 2>&1; then $(BIN)/nbdev_install_hooks; fi
	touch $@

help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/'

.PHONY: run test lab readme help
