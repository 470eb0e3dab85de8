#!/usr/bin/env bash
# gate.sh BASE: exit 0 if nothing got slower or wrong since the commit BASE, 1 if something did.
set -e
[ -n "${1:-}" ] || { echo "name the commit to compare with: bash docs/gate.sh BASE" >&2; exit 2; }
python -m harness run inference --backend "${ENGINE:-sscn}" --size "${SIZE:-192}" \
    --batch "${BATCH:-4}" --against "$1" --repeats "${ROUNDS:-8}" --budget "${BUDGET:-3}" --out gate.jsonl
python -m harness compare gate.against.jsonl gate.jsonl --fail-on "${FAIL_ON:-slower,wrong,missing}"
