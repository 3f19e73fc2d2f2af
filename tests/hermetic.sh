#!/usr/bin/env bash
# Runs the tests twice as a new machine would: no home folder, no root, a strict umask, another time zone, the plainest
# locale, in random order. Arguments go to pytest; `make test-hermetic` runs all tests.
set -euo pipefail
cd "$(dirname "$0")/.."
unset HOME
umask 077
as_user=()
if [ "$(id -u)" = 0 ]; then as_user=(unshare --user --map-user=1000 --map-group=1000); fi  # root's files become its own
for seed in 1 2; do
  "${as_user[@]}" env TZ=Asia/Kathmandu LC_ALL=POSIX PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 PYTHONHASHSEED=$seed \
    OMP_NUM_THREADS=1 "${VENV:-.venv}/bin/python" -m pytest -p no:cacheprovider --random-order-seed "$seed" \
    -n auto --maxprocesses 8 --dist worksteal "$@"
done
