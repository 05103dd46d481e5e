"""Runs a command inside a worker: session.py SOCKET WORKER COMMAND... (docs/protocol.md; standard library only)."""
import json, os, socket, struct, sys, threading

OPEN, STDIN, STDIN_END, CREDIT, STARTED, STDOUT, STDERR, END, STDIN_CLOSED = 1, 2, 3, 7, 32, 33, 34, 35, 36
WINDOW, PIECE = 1024 * 1024, 64 * 1024
CODES = {"detached": 0, "timed-out": 124, "could-not-start": 125, "cannot-execute": 126, "not-found": 127}

path, worker, argv = sys.argv[1], sys.argv[2], sys.argv[3:]
line = socket.socket(socket.AF_UNIX)
line.connect(path)
line.sendall(f"POST /v1/workers/{worker}/session HTTP/1.1\r\nHost: iii\r\n"
             "Connection: Upgrade\r\nUpgrade: iii-session/1\r\n\r\n".encode())
reader = line.makefile("rb")
status = reader.readline().split()[1]
head = dict(header.strip().lower().split(b": ", 1) for header in iter(reader.readline, b"\r\n"))
if status != b"101":
    sys.exit(reader.read(int(head[b"content-length"])).decode())

sending, room, credit, open_input = threading.Lock(), threading.Condition(), WINDOW, True


def send(kind, payload=b""):
    with sending:
        line.sendall(struct.pack(">IB", len(payload) + 1, kind) + payload)


def feed():
    global credit
    while piece := os.read(0, PIECE):
        while piece:
            with room:
                room.wait_for(lambda: credit > 0 or not open_input)
                if not open_input:
                    return
                part, piece = piece[:credit], piece[credit:]
                credit -= len(part)
            send(STDIN, part)
    send(STDIN_END)


send(OPEN, json.dumps({"version": 1, "task": {"kind": "exec", "argv": argv, "stdin": True}}).encode())
while True:
    size, kind = struct.unpack(">IB", reader.read(5))
    payload = reader.read(size - 1)
    if kind == STARTED:
        threading.Thread(target=feed, daemon=True).start()
    elif kind in (STDOUT, STDERR):
        stream = sys.stdout.buffer if kind == STDOUT else sys.stderr.buffer
        stream.write(payload)
        stream.flush()
        send(CREDIT, struct.pack(">I", len(payload)))
    elif kind in (CREDIT, STDIN_CLOSED):
        with room:
            credit += struct.unpack(">I", payload)[0] if kind == CREDIT else 0
            open_input = open_input and kind == CREDIT
            room.notify()
    elif kind == END:
        cause = json.loads(payload)["cause"]
        print(ascii(cause.get("message", ""))[1:-1], end="", file=sys.stderr)
        os._exit(cause.get("code", CODES.get(cause["kind"], 128 + cause.get("signal", 0))))
