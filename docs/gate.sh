#!/usr/bin/env bash
# gate.sh BASE: exit 0 if nothing got slower or wrong since the commit BASE, 1 if something did.
set -e
python -m harness run inference --backend "${ENGINE:-sscn}" --size 192 --batch 4 \
    --against "$1" --repeats "${ROUNDS:-8}" --budget "${BUDGET:-3}" --out gate.jsonl
python -m harness compare gate.against.jsonl gate.jsonl --fail-on slower,wrong,missing
