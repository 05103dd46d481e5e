"""The worker of the image `python`: says who and where it is, then waits to be stopped."""
import os
import pwd
import signal
import sys

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print(f"hello from python {sys.version_info[0]}.{sys.version_info[1]}: user={pwd.getpwuid(os.getuid()).pw_name} "
      f"cwd={os.getcwd()} FOO={os.environ.get('FOO')}", flush=True)
while True:
    signal.pause()
