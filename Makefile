# Every target works as the first command on a fresh machine: it creates .venv and installs what it needs.
SHELL := /bin/bash
PY := .venv/bin/python
# The stamp is named after the content of pyproject.toml, so a checkout that only touches the file costs nothing.
STAMP := .venv/.installed-$(shell cksum < pyproject.toml | cut -d' ' -f1)
# One thread per process: pytest runs two of them, and the numbers do not depend on the machine.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
CODE := src tests trainers scripts

.DEFAULT_GOAL := help
.PHONY: help install demo demo-llm demo-llm-pretrained demo-video demo-vl demo-planning demo-fork demo-collapse test test-slow test-lowest quality style cards docs notebooks bench clean

help:
	@echo "make demo        pretrain a small I-JEPA on CPU in minutes, evaluate it, write pictures and a card (LONG=1: an hour)"
	@echo "make demo-collapse   eight objectives, with and without collapse, on digits, in minutes (LAMBDA=1: SIGReg's weight)"
	@echo "make demo-llm    teach a small Llama sentences -> regular expressions with and without LLM-JEPA, on CPU in minutes"
	@echo "make demo-llm-pretrained   the same with LoRA on the real weights of SmolLM2-135M"
	@echo "make demo-video  pretrain a small V-JEPA 2 on moving garments; probes, surprise, real clips"
	@echo "make demo-vl     from emoji to their names: a small VL-JEPA against a linear map; captions, streams"
	@echo "make demo-planning   a world model plans from pixels to goals in another room; every baseline beside it"
	@echo "make demo-fork   what a latent variable is for: a dot that turns left or right at random, in minutes"
	@echo "make test        the test suite (CPU, offline)"
	@echo "make test-slow   the tests that take minutes"
	@echo "make test-lowest the test suite with the lowest releases that pyproject.toml allows, in .venv-lowest"
	@echo "make quality     ruff check, ruff format --check"
	@echo "make style       fix what ruff can fix"
	@echo "make cards       render model_cards/*.md again from their JSON files"
	@echo "make docs        build the documentation site into outputs/docs"
	@echo "make notebooks   run notebooks/ from top to bottom and keep their outputs"
	@echo "make bench       speed and memory, as ratios measured in one run"
	@echo "make clean       remove .venv and everything the targets above wrote"

$(STAMP): scripts/setup_env.sh
	@scripts/setup_env.sh
	@rm -f .venv/.installed-* && touch $@

install: $(STAMP)

demo: $(STAMP)
	@scripts/setup_env.sh --data
	$(PY) scripts/make_demo_data.py
	$(PY) -m trainers.demos.ijepa $(if $(LONG),--long)

demo-collapse: $(STAMP)
	$(PY) -m trainers.demos.collapse $(if $(LAMBDA),--lambda_rule)

demo-llm: $(STAMP)
	$(PY) -m trainers.demos.llm

demo-llm-pretrained: $(STAMP)
	@scripts/setup_env.sh --smollm2
	$(PY) -m trainers.demos.llm_pretrained

demo-video: $(STAMP)
	@scripts/setup_env.sh --data
	@scripts/setup_env.sh --clips
	$(PY) scripts/make_demo_data.py
	$(PY) -m trainers.demos.video

demo-vl: $(STAMP)
	@scripts/setup_env.sh --vl
	$(PY) -m trainers.demos.vl

demo-planning: $(STAMP)
	$(PY) -m trainers.demos.planning

demo-fork: $(STAMP)
	$(PY) -m trainers.demos.fork

test: $(STAMP)
	$(TEST_ENV) $(PY) -m pytest -n 2 --dist worksteal -m "not slow and not network and not gpu" --durations=10

test-slow: $(STAMP)
	@scripts/setup_env.sh --browser
	$(TEST_ENV) $(PY) -m pytest -n 2 -m "slow and not network and not gpu" --durations=10

test-lowest: $(STAMP)
	$(PY) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -r <($(PY) scripts/lowest_requirements.py --extras dev)
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	$(TEST_ENV) .venv-lowest/bin/python -m pytest -n 2 -m "not slow and not network and not gpu" --durations=10

quality: $(STAMP)
	$(PY) -m ruff check $(wildcard $(CODE))
	$(PY) -m ruff format --check $(wildcard $(CODE))

style: $(STAMP)
	$(PY) -m ruff check --fix $(wildcard $(CODE))
	$(PY) -m ruff format $(wildcard $(CODE))

cards: $(STAMP)
	$(PY) -m scripts.cards.render
	$(PY) -m scripts.cards.render_docs

docs: $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet -f docs/mkdocs.yml
	@echo "wrote outputs/docs/index.html; its search works where it is served: python -m http.server -d outputs/docs"

notebooks: $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[notebooks]'
	$(PY) -m scripts.run_notebooks

bench: $(STAMP)
	$(PY) -m scripts.benchmarks.image
	$(PY) -m scripts.benchmarks.objectives
	$(PY) -m scripts.benchmarks.llm
	$(PY) -m scripts.benchmarks.video
	$(PY) -m scripts.benchmarks.vl
	$(PY) -m scripts.benchmarks.world_models
	$(PY) -m scripts.benchmarks.input_pipeline
	$(PY) -m scripts.benchmarks.step_time

clean:
	rm -rf .venv .venv-lowest build dist outputs demo_data .ruff_cache .pytest_cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
