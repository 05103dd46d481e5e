# Sourced by the shell scripts of this folder: where things are, and how they talk.
# shellcheck shell=bash

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
# What set-up fetches or builds once; safe to delete at any time.
CACHE=${III_CACHE:-${HOME:?}/.cache/iii-dev}
LIBKRUNFW=$CACHE/libkrunfw.so.5

# Talk goes to stderr; stdout is for data.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  say "$*"
  exit 1
}
