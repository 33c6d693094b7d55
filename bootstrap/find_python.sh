#!/bin/sh
# Prints the first Python that can make the environment: 3.11 or newer, with venv and its C headers. Where none has all
# of it, the first that is new enough (the set-up then says what it lacks).
probe='
import sys
try:
    import ensurepip, sysconfig, venv, os
    whole = os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h"))
except ImportError:
    whole = False
sys.exit(2 if sys.version_info < (3, 11) else 0 if whole else 1)'

second=
for name in python3.12 python3.11 python3 python3.13 python3.14; do
  python=$(command -v "$name") || continue
  "$python" -c "$probe" >/dev/null 2>&1
  case $? in
    0) echo "$python"; exit 0 ;;
    1) # also what a name that cannot run gives
      if [ -z "$second" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        second=$python
      fi ;;
  esac
done
if [ -n "$second" ]; then
  echo "$second"
  exit 0
fi
echo "setup: Python 3.11 or newer is needed and was not found: install it (Debian, Ubuntu: python3 python3-venv" \
  "python3-dev) or name it: make setup PYTHON=/path/to/python3" >&2
exit 1
