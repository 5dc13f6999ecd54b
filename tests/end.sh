#!/usr/bin/env bash
# Kills what tests have started and their end has left behind: it is in process groups of its own,
# and goes on without its broker. Whatever has RUN as RW_TEST_RUN in its environment.
# Usage: tests/end.sh RUN
set -eu

# This is not one of them.
[ -z "${RW_TEST_RUN-}" ] || exec env -u RW_TEST_RUN "$0" "$@"
grep -lzsx "RW_TEST_RUN=$1" /proc/[0-9]*/environ | cut -d/ -f3 | xargs -r kill -KILL 2>/dev/null || true
