# make demo   set everything up and run the quick start to a report
# make test   set everything up and pass the tests
# make check  lint, format, types, import rules
# make bench  where the seconds of an evaluation go, JSON to stdout (bench-kernels: nodes of ResNet-20 in ONNX Runtime;
#             bench-own-kernels: binary and sparse convolutions of our own against ONNX Runtime)
# make bench-search  methods of search on frozen problems, 10 seeds: runs/bench-search.json and .html
# make bench-fitnets  a thin deep student on MNIST with and without a teacher (1412.6550), a table to stdout; what is done in
#             runs/fitnets is not done again (half an hour of one core)
# make bench-lottery  lottery tickets of LeNet-300-100 and their controls, three seeds: runs/lottery and docs/lottery.svg
# make papers  published figures on MNIST beside ours, into docs/results.md (about an hour; what is done is not done again)
# make gallery  what each technique does to real weights: docs/gallery.md and its pictures (two minutes)
# make coverage  which compressions work on which real networks: runs/coverage.json and docs/coverage.md; finished cells are kept
# make bench-kept  how many members of 19 fronts keep their budgets on the test split: runs/kept.json and a table; finished runs are kept

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
DEMO := runs/quickstart

.PHONY: setup demo test check bench bench-kernels bench-own-kernels bench-search bench-fitnets bench-lottery papers gallery coverage bench-kept clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,dashboard]'
	mkdir -p .venv/types && ln -sfn "$(CURDIR)" .venv/types/paretopress
	touch $@

demo: setup
	$(BIN)/paretopress search configs/quickstart.yaml --out $(DEMO)

test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	@$(BIN)/python -m paretopress.tests.bench.evaluation

bench-kernels: setup
	@$(BIN)/python -m paretopress.tests.bench.kernels

bench-own-kernels: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m paretopress.tests.bench.own_kernels

bench-search: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m paretopress.tests.bench.tabular --json runs/bench-search.json --html runs/bench-search.html

bench-fitnets: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m paretopress.tests.bench.fitnets

bench-lottery: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m paretopress.tests.bench.lottery --svg docs/lottery.svg

papers: setup
	@$(BIN)/python -m paretopress.tests.bench.papers

gallery: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m paretopress.tests.bench.gallery --folder docs/gallery --page docs/gallery.md

coverage: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m paretopress.tests.bench.coverage --json runs/coverage.json --page docs/coverage.md

bench-kept: setup
	@$(BIN)/python -m paretopress.tests.bench.kept --json runs/kept.json

clean:
	rm -rf .venv build dist *.egg-info
