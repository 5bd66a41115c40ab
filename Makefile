# Short names for the commands of .ci/run and README.rst.
# Needs python3 with venv (on Debian: the package python3-venv).

.PHONY: help test check lint docs demo bench soak fuzz audit mutants
help:
	@echo "make test    run the tests;  ARGS='-k claim -x' goes to pytest"
	@echo "make check   run all checks that a change must pass (.ci/run)"
	@echo "make lint    check format, types, layers and docstrings"
	@echo "make docs    build the documentation into build/docs"
	@echo "make demo    run the demo"
	@echo "make bench   measure dtimer and its peers;  ARGS='lateness drain --rounds 5'"
	@echo "make fuzz    feed random bytes to every decoder, for SECONDS=60"
	@echo "make audit   check the installed packages for known vulnerabilities"
	@echo "make mutants plant known bugs, and check that a test notices each;  ARGS='-k token'"
	@echo "make soak    inject faults for MINUTES=1, with SEED=, until EVENTS= are posted"

.venv/made: setup.cfg pyproject.toml
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

test: .venv/made
	.venv/bin/pytest $(ARGS)

check:
	.ci/run

lint:
	.ci/run lint

docs:
	.ci/run docs

demo: .venv/made
	.venv/bin/dtimer demo

bench: .venv/made
	.venv/bin/python -m benchmarks run $(ARGS)

mutants: .venv/made
	PYTHONPATH=tests .venv/bin/python -m chaos.mutants $(ARGS)

soak: .venv/made
	PYTHONPATH=tests .venv/bin/python -X dev -m chaos.soak $(if $(MINUTES),--minutes $(MINUTES)) \
	    $(if $(SEED),--seed $(SEED)) $(if $(EVENTS),--events $(EVENTS)) $(ARGS)

fuzz: .venv/made
	.venv/bin/pip install --quiet --disable-pip-version-check 'pip>=25.1'
	.venv/bin/pip install --quiet --disable-pip-version-check --group fuzz
	.venv/bin/python tests/chaos/fuzz.py $(or $(SECONDS),60) $(SEED)

audit:
	AUDIT=strict .ci/run audit
