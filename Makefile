# A target sets up what it needs (most a venv, once, and again when settings.ini or the lock changes) and then does its one job.
PYTHON ?= python3
VENV ?= .venv
DATA ?= sample
unexport PYTHON VENV DATA CDPATH   # make would run what is in $(...) there, and CDPATH leads into another checkout
# For the shell, whatever is in a path: spaces, quotes, dollars. Scripts are run by the venv's python, since the path that
# is written into them may be one that a shell does not take.
quote = '$(subst ','\'',$(value $(1)))'
V := $(call quote,VENV)
PY := $(V)/bin/python
# The notebooks and tests run without a network, where the system lets a user take it away.
OFFLINE := $(if $(shell unshare -rn true 2>/dev/null && echo yes),unshare -rn $(PY) .ci/offline)
# There a warning is an error, but for those of other libraries that .ci/warnings lists.
STRICT := env PYTHONWARNINGS="$$(grep -Ev '^(\#|$$)' .ci/warnings | paste -sd , -)"

run: venv  ## train the ladder of models; DATA=imagenette or a folder for real photos
	$(PY) -m resnet_course ladder --data $(call quote,DATA) --resume

test: venv  ## every notebook and every test
	PATH="$$(cd $(V)/bin && pwd):$$PATH" bash .ci/in_step
	@$(if $(OFFLINE),true,echo "no unshare here: the tests run with the network on")
	@# several processes: one thread each, or they stall each other; the path as a reader runs it, with all cores
	$(OFFLINE) $(STRICT) OMP_NUM_THREADS=1 $(PY) $(V)/bin/nbdev_test --timing --skip_file_re '^[_.0]'
	$(OFFLINE) $(STRICT) $(PY) $(V)/bin/nbdev_test --n_workers 1 --file_re '^0'
	$(OFFLINE) $(STRICT) $(PY) $(V)/bin/nbdev_test --path index.ipynb
	$(OFFLINE) $(STRICT) $(PY) .ci/exercises
	$(OFFLINE) $(STRICT) OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile tests

gpu: venv  ## on a machine with a CUDA GPU: test what only a GPU can show, and measure; into results/gpu
	$(PY) -W ignore -m pytest -q --confcutdir=tests/gpu tests/gpu

test-slow: venv  ## what takes long: faults of every kind, a run killed 200 times among them, counted in results/faults; later Pythons
	env RESNET_COURSE_FAULTS="$$PWD/results/faults" OMP_NUM_THREADS=1 $(PY) -m pytest -q -s -m "faults or long" tests
	bash .ci/pythons

lock:  ## make the lock anew from settings.ini's ranges, then try the newest of everything, which doctor then knows
	@# without the venv: the old lock may not fit the new ranges
	PYTHON=$(call quote,PYTHON) bash .ci/lock
	PYTHON=$(call quote,PYTHON) bash .ci/newest --keep

learn: venv  ## copy the lessons into a folder of your own, resnet-lessons, and open JupyterLab there
	$(PY) -m resnet_course learn resnet-lessons

lab: venv  ## open the course's own notebooks in JupyterLab, to change them
	@# fastai scripts a function when it is imported, of which torch warns: nothing that a learner could mend
	PYTHONWARNINGS=ignore::FutureWarning:torch.jit._script $(PY) -m jupyterlab --notebook-dir=. nbs/00_why.ipynb

readme: venv  ## make README.md from index.ipynb
	$(PY) .ci/readme.py

venv:  ## make the virtual environment, as the others do that need it
	@bash .ci/venv $(V) $(call quote,PYTHON)

help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:[^#]*##/\t/'

.PHONY: run test test-slow lock gpu learn lab readme venv help
