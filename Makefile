# make demo   set everything up and run the quick start to a report
# make test   set everything up and pass the tests
# make test-isa  the tests under seven settings of instruction sets and threads: runs/isa.json (an hour; finished settings are kept)
# make check  lint, format, types, import rules
# make bench  where the seconds of an evaluation go, JSON to stdout (bench-kernels: nodes of ResNet-20 in ONNX Runtime;
#             bench-own-kernels: binary and sparse convolutions of our own against ONNX Runtime;
#             bench-eight-bit: ResNet-20 in 8 bit beside ONNX Runtime's own static quantizer)
# make bench-memory  the peak while 10,000 pictures of 224 px are read, against their bytes: JSON to stdout
# make bench-search  methods of search on frozen problems, 10 seeds: runs/bench-search.json and .html
# make bench-fitnets  a thin deep student on MNIST with and without a teacher (1412.6550), a table to stdout; what is done in
#             runs/fitnets is not done again (half an hour of one core)
# make bench-lottery  lottery tickets of LeNet-300-100 and their controls, three seeds: runs/lottery and docs/lottery.svg
# make papers  published figures on MNIST beside ours, into docs/results.md (about an hour; what is done is not done again)
# make gallery  what each technique does to real weights: docs/gallery.md and its pictures (two minutes)
# make coverage  which compressions work on which real networks: runs/coverage.json and docs/coverage.md; finished cells are kept
# make bench-kept  how many members of 19 fronts keep their budgets on the test split: runs/kept.json and a table; finished runs are kept

# Python 3.11 or later and a package index are all it needs (uv is used where it is there); PYTHON=/path/to/python chooses one.

BIN := .venv/bin
DEMO := runs/quickstart

.PHONY: setup demo test test-isa check bench bench-kernels bench-own-kernels bench-eight-bit bench-memory bench-search bench-fitnets bench-lottery papers gallery coverage bench-kept clean

setup: .venv/.ready

# An environment that was moved with its folder is made anew: its programs know the old path.
ifneq ($(shell test ! -s .venv/.ready || test "$$(cat .venv/.ready)" = "$$(pwd -P)" || echo moved),)
.PHONY: .venv/.ready
endif

.venv/.ready: pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" sh .ci/setup

demo: setup
	$(BIN)/paretopress search configs/quickstart.yaml --out $(DEMO)

test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile

test-isa: setup
	@$(BIN)/python -m paretopress.tests.bench.isa

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

bench-memory: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m paretopress.tests.bench.memory

bench-eight-bit: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m paretopress.tests.bench.eight_bit

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
