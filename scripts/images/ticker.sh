#!/bin/sh
# Prints a numbered line on stdout and one on stderr each second.
trap 'echo "ticker ends"; exit 0' TERM
i=0
while :; do
  i=$((i + 1))
  echo "tick $i"
  echo "tock $i" >&2
  sleep "${INTERVAL:-1}" &
  wait $!
done
