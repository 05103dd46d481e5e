#!/bin/sh
# Crashes in its first CRASHES lives, CRASH_AFTER seconds after their start, with EXIT_CODE; then runs
# well, until SIGUSR1 or the file /crash asks for another crash. Counts its lives on its own disk.
mkdir -p /var/lib/flaky
read -r lives </var/lib/flaky/lives 2>/dev/null
lives=$((${lives:-0} + 1))
echo "$lives" >/var/lib/flaky/lives
crash() {
  echo "life $lives: crashing with ${EXIT_CODE:-7}" >&2
  exit "${EXIT_CODE:-7}"
}
trap crash USR1
trap 'echo "life $lives: asked to stop"; exit 0' TERM
echo "life $lives: started"
if [ "$lives" -le "${CRASHES:-1}" ]; then
  sleep "${CRASH_AFTER:-1}" &
  wait $!
  crash
fi
echo "life $lives: running well"
while :; do
  if [ -e /crash ]; then
    rm /crash
    crash
  fi
  sleep 1 &
  wait $!
done
