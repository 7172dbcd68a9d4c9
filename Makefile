# Every target makes .venv when it is missing or out of date. `make demo` and `make test` need no network after that.
PYTHON ?= python3
VENV := .venv
BENCH_VENV := .venv-bench
OUTPUT_DIR ?= outputs/demo
# Processes that share the test files; each computes on one thread.
WORKERS ?= 2
# Peers of the curvature benchmark. They go in without their dependencies: curvlinops asks for torchvision, which replaces a CPU torch.
PEERS := kronfluence==1.0.1 curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1 unfoldNd==0.2.3

.PHONY: help demo test test_slow quality style bench clean

help:
	@echo "make demo       train a tiny model, unlearn from it, write $(OUTPUT_DIR)/report.html"
	@echo "make test       the test suite (ARGS='-k word' to choose, WORKERS=4 on more cores)"
	@echo "make test_slow  the tests that take more than a minute"
	@echo "make quality    ruff check and format, docs/results.md against what was measured; changes nothing"
	@echo "make style      ruff check and format, mending what it can"
	@echo "make bench      K-FAC and EK-FAC against kronfluence and curvlinops"
	@echo "make clean      remove $(VENV), $(BENCH_VENV), build output and caches"

# The stamp is written last. Without it the folder is a half-made one (a killed pip) and is made again from nothing. One pip
# call, as a second one may replace the CPU torch.
$(VENV)/.installed: setup.cfg constraints.txt
	@test -f $@ || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $@
	$(VENV)/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo test test_slow bench: export HF_HUB_OFFLINE = 1
demo test test_slow bench: export HF_HUB_DISABLE_XET = 1

demo: $(VENV)/.installed
	$(VENV)/bin/hf-unlearn demo --output_dir $(OUTPUT_DIR)

# pytest exits with 5 when it finds no test, so an empty run fails here too.
test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test_slow: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -m slow --timeout=3600 $(ARGS)

quality: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python benchmarks/update_readme.py --check

style: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# The peers see the packages of .venv (and this checkout) through a path file and add only themselves.
$(BENCH_VENV)/.installed: $(VENV)/.installed Makefile
	$(PYTHON) -m venv --clear $(BENCH_VENV)
	@$(VENV)/bin/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" > \
		"$$($(BENCH_VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/hf_unlearn_venv.pth"
	$(BENCH_VENV)/bin/pip install -qq --disable-pip-version-check -c constraints.txt einops einconv opt_einsum linear_operator
	$(BENCH_VENV)/bin/pip install -qq --disable-pip-version-check --no-deps $(PEERS)
	@touch $@

bench: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python benchmarks/curvature.py $(ARGS)

clean:
	rm -rf $(VENV) $(BENCH_VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
