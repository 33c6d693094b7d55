# Everything from a bare machine (Python >= 3.11 and a C++ compiler), or on a sourced ROS 2 distribution:
#
#   make demo    the main job, end to end; writes out/demo/
#   make test    ruff, mypy and pytest with coverage (a part: make test PYTEST_ARGS="-k filter")
#   make bench   how fast the parts are
#   make soak    three hours of data with faults at full speed: is memory flat, do the counters add up (minutes; Linux)
#   make lint    ruff and mypy alone
#   make setup   only the environment that the others make for themselves
#   make clean   removes what was built; the next run starts from nothing
#
# After `make setup`, `source .venv/ros_env.sh` gives a shell in which `vmloc --help` and the node run.

.DEFAULT_GOAL := help
.PHONY: help setup test lint demo bench soak clean

# A distribution is sourced when it set these two, and not the environment from wheels, which sets the third as well.
ifneq (,$(and $(ROS_DISTRO),$(AMENT_PREFIX_PATH),$(if $(_ROS_WHEELS_BOOTSTRAP_COMPLETE),,yes)))
KIND := distribution
else
KIND := wheels
endif

PYTHON ?= $(shell sh bootstrap/find_python.sh)
RUN := . .venv/ros_env.sh &&
# The whole suite has to cover the layers 0-3; a part of it, chosen with PYTEST_ARGS, cannot.
PYTEST_ARGS ?= --cov --cov-report=term --cov-fail-under=85

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@python="$(PYTHON)" && test -n "$$python" && "$$python" bootstrap/setup_environment.py $(KIND)

lint: setup
	@$(RUN) ruff check .
	@$(RUN) mypy

test: lint
	@$(RUN) python -m pytest $(PYTEST_ARGS)

demo: setup
	@$(RUN) vmloc demo --out out/demo

bench: setup
	@$(RUN) vmloc bench

soak: setup
	@$(RUN) vmloc soak

clean:
	rm -rf .venv build install log out
