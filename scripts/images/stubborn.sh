#!/bin/sh
# Does not stop when asked to: only SIGKILL ends it.
trap 'echo "no, thank you"' TERM INT HUP
echo "stubborn started"
while :; do
  sleep 3600 &
  wait $!
done
