#!/bin/sh
# Prints LINES numbered lines at once, then a last one without a newline, then exits 0.
i=0
while [ $i -lt "${LINES:-10000}" ]; do
  i=$((i + 1))
  echo "line $i of ${LINES:-10000}"
done
printf 'the last words'
